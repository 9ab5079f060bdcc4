"""The page for browsers: its files and pictures are those of the Python side."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codecs_for_export import exported
from hyper import HYPER, hyper_tables
from PIL import Image
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from test_device import factorized

from benchmarks.device import symbols_for
from benchmarks.page import RUNTIME, served
from codec import tiles
from codec.bitstream.container import pack, unpack
from codec.bitstream.rate_coder import coder_of
from codec.bitstream.tables import AnyTables, to_bytes
from codec.errors import InputError
from codec.targets import TargetOptions
from export.runtime import Model, decode, encode
from export.web import building, main
from export.web.building import PAGE, SOURCES, compile_wasm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("clang") and shutil.which("wasm-ld")),
        reason="there is no compiler for WebAssembly: apt-get install clang lld",
    ),
]

CODECS = (
    *(("bmshj2018_factorized", precision, 1) for precision in ("float", "int8")),
    *((arch, "int8", 1) for arch in HYPER),
    *((arch, "int8", 3) for arch in HYPER),
)
NAMES = [f"{arch} {precision}, {rates} rates" for arch, precision, rates in CODECS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the page's scripts and the coder, and its address."""
    folder = tmp_path_factory.mktemp("site")
    compile_wasm(folder / "coder.wasm")
    (folder / building.CODECS).write_text("[]")
    for name in PAGE:
        shutil.copyfile(SOURCES / name, folder / name)
    with served(folder) as address:
        yield folder, address


@pytest.fixture
def script(chromium: Chrome, site: tuple[Path, str]) -> Chrome:
    """A tab from which the page's scripts can be imported."""
    chromium.get(f"{site[1]}/tiles.js")
    return chromium


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


CODE = """
const [tables, width, height, symbols, z, done] = arguments;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const words = (text) => new Int32Array(bytes(text).buffer);
const text = (array) => btoa(Array.from(new Uint8Array(array.buffer), (byte) => String.fromCharCode(byte)).join(""));
const { Coder } = await import("/coder.js");
const program = await (await fetch("/coder.wasm")).arrayBuffer();
try {
  const coder = await Coder.open(program, bytes(tables).buffer);
  const file = coder.encode(coder.most, height, width, words(symbols), z && words(z));
  let refused = "";
  try { coder.decode(file.slice(0, -1)); } catch (error) { refused = error.message; }
  const found = coder.decode(file);
  const floats = Float32Array.from(words(symbols), (s, i) => s + coder.medians[0] + (i % 9) / 16 - 0.25);
  const rounded = text(coder.round(coder.most, height, width, floats, z && words(z)));
  done({ file: text(file), values: text(found.values), size: [found.height, found.width], refused, rounded });
} catch (error) { done({ error: String(error.stack) }); }
"""


@pytest.mark.parametrize("name", ["bmshj2018_factorized", *HYPER])
def test_the_coder_in_webassembly_writes_and_reads_the_same_files(name: str, script: Chrome) -> None:
    tables: AnyTables = factorized() if name not in HYPER else hyper_tables(name)
    coder = coder_of(tables)
    symbols, z = symbols_for(coder, 70, 1300, 9)
    given = (text(to_bytes(tables)), 1300, 70, text(symbols.tobytes()), None if z is None else text(z.tobytes()))
    found = script.execute_async_script(f"(async function () {{{CODE}}}).apply(null, arguments)", *given)
    assert "error" not in found, found
    data = base64.b64decode(found["file"])
    assert data == pack(70, 1300, symbols, coder, z)
    assert found["size"] == [70, 1300]
    assert base64.b64decode(found["values"]) == unpack(data, coder)[2].tobytes()
    assert found["refused"].startswith("it is truncated or altered")
    off = (np.arange(symbols.size) % 9 / 16 - 0.25).reshape(symbols.shape)
    y = (symbols + coder.medians.ravel()[0].astype(np.float64) + off).astype(np.float32)
    assert base64.b64decode(found["rounded"]) == coder.round(y, z).tobytes()


def test_its_tiles_are_those_of_the_python_side(script: Chrome) -> None:
    random = np.random.default_rng(0)
    sizes = [[1, 1], [56, 55], [3000, 2], [1, 4000], [250, 190], *random.integers(1, 200, (40, 2)).tolist()]
    margins = [None, *([int(a), int(b)] for a, b in random.integers(0, 9, (9, 2)))]
    given = [(size, margins[i % len(margins)]) for i, size in enumerate(sizes)]
    found = script.execute_async_script(
        "const [given, done] = arguments;"
        "import('/tiles.js').then(({tilesOf}) => done(given.map((each) => tilesOf(...each))))",
        given,
    )
    for (size, margin), theirs in zip(given, found, strict=True):
        whole = margin is None or size[0] * size[1] <= tiles.LARGEST_WHOLE
        side = size if whole else tiles.tile_size(size, margin)
        ours = tiles.tiles(size, side, margin or (2, 2))
        fields = ("size", "place", "first", "end")
        assert theirs == [{name: list(getattr(tile, name)) for name in fields} for tile in ours]


@pytest.fixture(scope="module")
def models(picture: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Encoder and decoder of each codec, for pictures of any size."""
    folder = tmp_path_factory.mktemp("models")
    return {name: exported(folder, f"{name}-", *codec, picture) for name, codec in zip(NAMES, CODECS, strict=True)}


@pytest.fixture(scope="module")
def page(chromium: Chrome, site: tuple[Path, str], models: dict[str, tuple[Path, Path]]) -> Chrome:
    """The page with all codecs, in a browser."""
    if not RUNTIME.is_dir():
        pytest.skip("there is no onnxruntime-web: make web")
    encoders, decoders = (map(str, each) for each in zip(*models.values(), strict=True))
    words = [
        str(site[0]),
        "--encoder",
        *encoders,
        "--decoder",
        *decoders,
        "--name",
        *NAMES,
        "--onnxruntime",
        str(RUNTIME),
    ]
    assert main(words) == 0
    chromium.get_log("browser")  # what other pages said
    chromium.get(f"{site[1]}/index.html")
    WebDriverWait(chromium, 30).until(lambda browser: browser.find_elements(By.TAG_NAME, "option"))
    return chromium


def find(page: Chrome, name: str) -> Any:
    return page.find_element(By.ID, name)


def given(page: Chrome, path: Path) -> None:
    """Gives a file to the page and waits for what it shows, or says."""
    page.execute_script("document.getElementById('file').value = ''")
    find(page, "file").send_keys(str(path))
    finished(page)


def photograph(page: Chrome, x: torch.Tensor, folder: Path) -> np.ndarray:
    """Gives the page a photograph, float [3, H, W] in [0, 1]; returns its pixels [H, W, 3]."""
    pixels: np.ndarray = (x * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "cat.png")
    given(page, folder / "cat.png")
    return pixels


def finished(page: Chrome) -> None:
    """Waits until the page has nothing more to do."""
    WebDriverWait(page, 60).until(lambda _: state(page)[0] == "" or "wrong" in state(page)[1])


def state(page: Chrome) -> tuple[str, str]:
    return find(page, "state").text, find(page, "state").get_attribute("class")


def shown(page: Chrome) -> np.ndarray:
    """The pixels of the decoded picture, [H, W, 3]."""
    data, width = page.execute_script(
        "const {width, height} = document.getElementById('decoded');"
        "const {data} = document.getElementById('decoded').getContext('2d').getImageData(0, 0, width, height);"
        "return [btoa(String.fromCharCode(...data)), width]"
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, width, 4)[..., :3]


def downloaded(page: Chrome, folder: Path) -> bytes:
    """What a click on the button gives."""
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    find(page, "download").click()
    WebDriverWait(page, 20).until(lambda _: (folder / "cat.bin").exists())
    return (folder / "cat.bin").read_bytes()


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_photograph_gives_the_bytes_and_the_pixels_of_the_python_side(
    name: str, page: Chrome, models: dict[str, tuple[Path, Path]], picture: torch.Tensor, tmp_path: Path
) -> None:
    Select(find(page, "codec")).select_by_visible_text(name)
    pixels = photograph(page, picture[0, :, 40:139, 100:243], tmp_path)
    assert state(page)[0] == ""
    (tmp_path / "out").mkdir()
    data = downloaded(page, tmp_path / "out")
    encoder, decoder = (Model(path, part) for path, part in zip(models[name], ("encoder", "decoder"), strict=True))
    assert data == encode(pixels, encoder)
    expected = decode(data, decoder)
    assert np.array_equal(shown(page), expected)
    figures = {key: find(page, key).text for key in ("size", "bytes", "bpp", "psnr")}
    mse = np.square(pixels.astype(float) - expected).mean()
    assert figures == {
        "size": "143 × 99",
        "bytes": f"{len(data):,} bytes",
        "bpp": f"{8 * len(data) / (143 * 99):.3f}",
        "psnr": f"{10 * np.log10(255**2 / mse):.2f} dB",
    }
    assert not find(page, "rates").is_displayed()
    given(page, tmp_path / "out" / "cat.bin")
    assert np.array_equal(shown(page), expected)
    assert not find(page, "psnr").is_displayed()


@pytest.mark.parametrize("name", [NAMES[-2], NAMES[-1]])
def test_the_rate_is_chosen_on_the_page(
    name: str, page: Chrome, models: dict[str, tuple[Path, Path]], picture: torch.Tensor, tmp_path: Path
) -> None:
    Select(find(page, "codec")).select_by_visible_text(name)
    pixels = photograph(page, picture[0, :, 40:139, 100:243], tmp_path)
    encoder, decoder = (Model(path, part) for path, part in zip(models[name], ("encoder", "decoder"), strict=True))
    for key, rate in ((Keys.END, 1.0), (Keys.HOME, 0.0)):
        find(page, "rate").send_keys(key)
        finished(page)
        (tmp_path / str(rate)).mkdir()
        data = downloaded(page, tmp_path / str(rate))
        assert data == encode(pixels, encoder, TargetOptions(rate=rate))
        assert np.array_equal(shown(page), decode(data, decoder))
        assert find(page, "bytes").text == f"{len(data):,} bytes"


def test_the_slider_moves_by_key_and_the_page_fits_a_phone(page: Chrome, tmp_path: Path, picture: torch.Tensor) -> None:
    photograph(page, picture[0, :, :96, :128], tmp_path)
    slider = find(page, "split")
    slider.send_keys(Keys.HOME + Keys.ARROW_RIGHT * 3)
    assert find(page, "stage").get_attribute("style") == "--split: 3%;"
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_no_picture_and_another_codec_s_file_are_named(page: Chrome, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    coder = coder_of(hyper_tables(HYPER[0]))
    (tmp_path / "other.bin").write_bytes(
        pack(40, 30, *symbols_for(coder, 40, 30)[:1], coder, symbols_for(coder, 40, 30)[1])
    )
    for file, words in (
        ("words.png", "no picture that this browser opens"),
        ("other.bin", "written with another codec"),
    ):
        given(page, tmp_path / file)
        assert state(page)[0].startswith(f"{file}: ")
        assert words in state(page)[0]


def test_the_page_asks_only_its_own_server_and_nothing_goes_wrong(page: Chrome, site: tuple[Path, str]) -> None:
    assert page.execute_script("return crossOriginIsolated")  # by isolate.js: this server sends no such headers
    names = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert {name.startswith(f"{site[1]}/") for name in names if not name.startswith("data:")} == {True}
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_what_is_missing_or_does_not_fit_is_refused_in_one_line(
    models: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = map(str, models[NAMES[0]])
    words = ["--encoder", encoder, "--decoder", decoder, "--onnxruntime", str(tmp_path)]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.html").write_text("a page of the user's")
    if RUNTIME.is_dir():
        with pytest.raises(InputError, match="holds something else than such a page"):
            main([str(tmp_path / "foreign"), *words[:-2], "--onnxruntime", str(RUNTIME)])
    with pytest.raises(InputError, match="no folder of onnxruntime-web"):
        main([str(tmp_path / "out"), *words])
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (tmp_path / "dist").mkdir(exist_ok=True)
        (tmp_path / "dist" / name).touch()
    with pytest.raises(InputError, match="1 encoder, 1 decoder and 2 names"):
        main([str(tmp_path / "out"), *words, "--name", "a", "b"])
    other = str(models[NAMES[2]][1])
    with pytest.raises(InputError, match="different codecs"):
        main([str(tmp_path / "out"), "--encoder", encoder, "--decoder", other, *words[4:]])
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "out"), *words]) == 0
    assert [each["name"] for each in json.loads((tmp_path / "out" / "codecs.json").read_text())] == [Path(encoder).stem]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install clang lld"):
        main([str(tmp_path / "out"), *words])
