"""`--report`: what the page holds, and how it behaves in a browser with a hand on it."""

import io
import math
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.evaluate import main
from codec.evaluation.album import WINDOW, Album, spread
from codec.evaluation.coded import Decoded
from codec.evaluation.figures import Figures
from codec.evaluation.ranks import Ranks
from codec.evaluation.references import QUALITIES
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.tables import with_tables

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=document.title=1>&.png"
SIZE = (480, 320)  # what a wide window shows pixel for pixel
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, a checkpoint of GDN and one of ReLU, and the page of them and JPEG."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "pictures").mkdir()
    with Image.open(photographs / "coffee.png") as coffee:
        coffee.crop((60, 40, 60 + SIZE[0], 40 + SIZE[1])).save(folder / "pictures" / "coffee.png")
        coffee.crop((0, 0, 100, 90)).save(folder / "pictures" / HOSTILE)
    for name in ("gdn", "relu"):
        torch.manual_seed(len(name))
        codec = new_codec(Architecture(8, 12, g_a=BlockChoice(name)))
        with torch.no_grad():
            codec.g_a[6].weight *= 50  # latents that spread over some symbols
        save_codec(folder / f"{name}.safetensors", with_tables(codec), Description())
    words = ["--images", folder / "pictures", "--checkpoint", folder / "relu.safetensors"]
    words += ["--reference", folder / "gdn.safetensors", "jpeg", "published", "--report", folder / "page.html"]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture
def page(chromium: Chrome, folder: Path) -> Iterator[Chrome]:
    """The page, freshly opened from the file system; nothing may have gone wrong in it at the end."""
    chromium.get((folder / "page.html").as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    assert (
        chromium.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))"
        )
        == []
    )


def find(page: Chrome | WebElement, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def pixels(element: WebElement) -> NDArray[np.int64]:
    """What is on the screen there, [H, W, 3]; an element's own screenshot may begin a row late."""
    page = element.parent
    place = page.execute_script("const r = arguments[0].getBoundingClientRect(); return [r.y, r.x]", element)
    top, left = (math.floor(edge + 0.5) for edge in place)
    screen = np.array(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")).astype(np.int64)
    return screen[top : top + element.size["height"], left : left + element.size["width"]]


def original(folder: Path) -> NDArray[np.int64]:
    return np.array(Image.open(folder / "pictures" / "coffee.png")).astype(np.int64)


def decoded(folder: Path, name: str) -> NDArray[np.int64]:
    """The first picture as a codec's file gives it back, [H, W, 3]."""
    files = FileCodec(load_codec(folder / f"{name}.safetensors")[0])
    x = torch.from_numpy(original(folder)).permute(2, 0, 1)[None].to(torch.uint8)
    return files.decompress(files.compress(x))[0].permute(1, 2, 0).numpy().astype(np.int64)


def coffee(page: Chrome) -> WebElement:
    """The section of the first picture that is no trap, in view."""
    section = next(each for each in page.find_elements(By.CLASS_NAME, "picture") if "coffee" in each.text)
    page.execute_script("arguments[0].scrollIntoView()", section)
    return section


def test_the_slider_uncovers_the_pixels_of_both_pictures_by_pointer_and_by_key(page: Chrome, folder: Path) -> None:
    section = coffee(page)
    stage, slider = find(section, ".stage"), find(section, "input")
    x, x_hat = original(folder), decoded(folder, "relu")
    assert stage.size == {"width": SIZE[0], "height": SIZE[1]}

    def shows(split: int) -> None:
        """The top is compared: the slider's handle is in the middle."""
        screen = pixels(stage)[:100]
        assert np.array_equal(screen[:, : max(0, split - 4)], x[:100, : max(0, split - 4)])
        assert np.array_equal(screen[:, split + 4 :], x_hat[:100, split + 4 :])

    shows(240)
    ActionChains(page).click_and_hold(slider).move_by_offset(-120, 0).release().perform()
    assert slider.get_attribute("value") == "25"
    shows(120)
    slider.send_keys(Keys.ARROW_RIGHT * 5)
    assert slider.get_attribute("value") == "30"
    shows(144)
    slider.send_keys(Keys.HOME)
    shows(0)


def test_the_difference_map_is_eight_times_the_difference_of_what_is_chosen(page: Chrome, folder: Path) -> None:
    section = coffee(page)
    canvas = find(section, "canvas")
    seen = {"original": original(folder), "relu": decoded(folder, "relu"), "gdn": decoded(folder, "gdn")}

    def shows(left: str, right: str) -> bool:
        return np.array_equal(pixels(canvas), np.minimum(255, 8 * np.abs(seen[left] - seen[right])))

    wait = WebDriverWait(page, 10)
    wait.until(lambda _: shows("original", "relu"))
    Select(find(page, "#left")).select_by_visible_text("gdn.safetensors")
    wait.until(lambda _: shows("gdn", "relu"))
    compared = [row.text for row in section.find_elements(By.CSS_SELECTOR, "tr.compared th")]
    assert compared == ["▸ relu.safetensors", "▸ gdn.safetensors"] or compared == [
        "relu.safetensors",
        "gdn.safetensors",
    ]
    assert find(section, ".left-label").text == "◂ gdn.safetensors"
    Select(find(page, "#left")).select_by_visible_text("relu.safetensors")
    wait.until(lambda _: shows("relu", "relu"))


def test_a_heading_sorts_its_table_by_click_and_by_key(page: Chrome) -> None:
    table = find(page, "#means")
    heading = next(each for each in table.find_elements(By.TAG_NAME, "th") if "PSNR" in each.text)
    button = find(heading, "button")

    def column() -> list[float]:
        return [float(row.find_elements(By.CSS_SELECTOR, "th, td")[4].text) for row in rows()]

    def rows() -> list[WebElement]:
        return table.find_elements(By.CSS_SELECTOR, "tbody tr")

    assert len(rows()) == 2 + 9
    button.click()
    assert column() == sorted(column())
    assert heading.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert column() == sorted(column(), reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    estimated = find(table, "th:nth-child(4) button")
    for _ in range(2):
        estimated.click()
        assert [row.text.endswith("–") for row in rows()] == [False] * len(rows())
        assert [row.find_elements(By.TAG_NAME, "td")[2].text == "–" for row in rows()] == [False] * 2 + [True] * 9
    assert heading.get_attribute("aria-sort") is None
    names = find(table, "th button")
    names.click()
    qualities = [f"jpeg {quality}" for quality in QUALITIES["jpeg"]]
    assert [find(row, "th").text for row in rows()] == ["gdn.safetensors", *qualities, "relu.safetensors"]


def test_a_point_of_the_curve_says_what_it_is_under_the_pointer_and_by_key(page: Chrome) -> None:
    curve = find(page, ".curve")
    hint = find(curve, ".hint")
    points = curve.find_elements(By.CLASS_NAME, "point")
    labels = [point.get_attribute("data-label") for point in points]
    assert len(labels) == 1 + 1 + 9 + 8
    assert [label.partition(":")[0] for label in labels[1:10]] == [f"jpeg {quality}" for quality in QUALITIES["jpeg"]]
    assert re.fullmatch(r"relu.safetensors: [\d.]+ bpp, [\d.]+ dB, MS-SSIM [\d.]+", labels[-1])
    ActionChains(page).move_to_element_with_offset(points[5], 3, 2).perform()
    assert hint.text == labels[5]
    ActionChains(page).move_to_element(find(page, "h1")).perform()
    assert hint.text == ""
    curve.send_keys(Keys.ARROW_RIGHT)
    assert hint.text == labels[0]
    curve.send_keys(Keys.ARROW_LEFT)
    assert hint.text == labels[-1]


def test_the_page_fits_a_phone_and_follows_the_scheme(page: Chrome) -> None:
    def brightness(name: str) -> int:
        return sum(map(int, re.findall(r"\d+", find(page, "body").value_of_css_property(name))[:3]))

    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for scheme, dark in (("light", False), ("dark", True)):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            assert page.execute_script("return document.documentElement.scrollWidth") == 360
            assert (brightness("background-color") < 150) is dark
            assert (brightness("color") < 150) is not dark
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_that_acts_is_reached_by_tab_and_visibly_so(page: Chrome) -> None:
    find(page, "summary").click()
    acting = page.find_elements(By.CSS_SELECTOR, ".curve, button, a, summary, select, input")
    reached = set()
    for _ in range(2 * len(acting)):
        page.switch_to.active_element.send_keys(Keys.TAB)
        focused = page.switch_to.active_element
        reached.add(focused.id)
        outlined = focused.find_element(By.XPATH, "..") if focused.tag_name == "input" else focused
        if focused.tag_name != "body":
            assert outlined.value_of_css_property("outline-style") == "solid", focused.get_attribute("outerHTML")[:100]
    assert {each.id for each in acting} <= reached


def test_the_name_of_a_picture_stays_text(page: Chrome) -> None:
    assert page.title.endswith("rate and distortion")
    assert any(each.text.startswith(HOSTILE) for each in page.find_elements(By.TAG_NAME, "h3"))
    assert page.find_elements(By.CSS_SELECTOR, "[onerror], img:not([src^='data:'])") == []


def test_the_page_asks_nothing_of_a_network(folder: Path) -> None:
    text = re.sub(r"data:image/webp;base64,[\w+/=]+", "", (folder / "page.html").read_text())
    named = set(re.findall(r"https?://[^\"'\s<>]+", text))
    assert {urllib.parse.urlsplit(each).hostname for each in named} <= {"www.w3.org"}, named
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:href|src)=(?!\"\")", re.sub(r"<img[^>]*>", "", text))


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    words = ["--images", "nowhere", "--checkpoint", "nothing.safetensors", "--report"]
    (tmp_path / "folder.html").mkdir()
    for path, message in (
        ("missing/page.html", "its folder does not exist"),
        ("folder.html", "cannot be written there"),
        ("page.txt", "ends in .html"),
    ):
        with pytest.raises(InputError, match=message):
            main([*words, str(tmp_path / path)])


def test_pictures_and_files_are_limited_and_the_pictures_evenly_spread() -> None:
    assert spread(3, 2) == [0, 1, 2]
    assert spread(24, 3) == list(range(24))
    assert spread(48, 1) == list(range(0, 48, 2))
    assert spread(5000, 15) == [0, 833, 1666, 2500, 3333, 4166]
    assert spread(10, 1000) == [0]


def test_of_several_qualities_the_one_nearest_in_size_to_the_first_codec_is_shown() -> None:
    def passing(*bpps: float) -> list[Decoded]:
        x = torch.zeros(3, 600, 1000, dtype=torch.uint8)
        return [Decoded(i, Figures(30, None, 0, None, bpp, 600000), x, x + int(10 * bpp)) for i, bpp in enumerate(bpps)]

    album = Album([0, 2])
    assert [index for index, _ in album.keep("a", "a", passing(0.5, 0.9, 1.5))] == [0, 1, 2]
    for quality, bpp in ((5, 0.3), (10, 0.6), (50, 1.4), (90, 2.5)):
        list(album.keep("jpeg", f"jpeg {quality}", passing(bpp, bpp, bpp)))
    shown = album.gather(Ranks(0, 1, CPU))
    assert [(each.index, each.size, each.window) for each in shown] == [
        (index, (1000, 600), WINDOW[::-1]) for index in (0, 2)
    ]
    assert [[each.name for each in picture.reconstructions] for picture in shown] == [
        ["a", "jpeg 10"],
        ["a", "jpeg 50"],
    ]
    stored = np.array(Image.open(io.BytesIO(shown[1].reconstructions[1].webp)))
    assert stored.shape == (512, 768, 3)
    assert (stored == 14).all()


def test_the_slider_of_rates_moves_a_codec_of_several_and_what_is_nearest_in_size(
    chromium: Chrome, folder: Path
) -> None:
    codec = new_codec(Architecture(8, 12))
    codec.add_rates(3, octaves=2.0)
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    save_codec(folder / "rates.safetensors", with_tables(codec), Description())
    words = ["--images", folder / "pictures" / "coffee.png", "--checkpoint", folder / "rates.safetensors"]
    assert main([str(word) for word in [*words, "--reference", "jpeg", "--report", folder / "rates.html"]]) == 0
    chromium.get((folder / "rates.html").as_uri())
    section, slider = find(chromium, ".picture"), find(chromium, "#rate")
    assert len(section.find_elements(By.CSS_SELECTOR, "img")) == 1 + 3 + 3
    options = [each.text for each in Select(find(chromium, "#right")).options]
    assert options == ["original", "rates.safetensors", "jpeg, nearest in size"]
    assert find(section, ".right-label").text == "rates.safetensors at rate 0.500 ▸"
    slider.send_keys(Keys.END)
    assert find(section, ".right-label").text == "rates.safetensors at rate 1.000 ▸"
    slider.send_keys(Keys.HOME)
    assert find(section, ".right-label").text == "rates.safetensors at rate 0.000 ▸"
    assert [row.text.removeprefix("▸ ") for row in section.find_elements(By.CSS_SELECTOR, "tr.compared th")] == [
        "rates.safetensors at rate 0.000"
    ]
    Select(find(chromium, "#right")).select_by_index(2)
    low = find(section, ".right-label").text
    slider.send_keys(Keys.END)
    assert low.startswith("jpeg")
    assert find(section, ".right-label").text.startswith("jpeg")
    assert chromium.get_log("browser") == []
