"""Curves and their Bjontegaard differences, on figures whose answer is known."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codec.errors import InputError
from codec.evaluation.chart import chart
from codec.evaluation.curves import PUBLISHED, NoDifference, Point, curve, difference, plot, read_curve


def test_a_curve_with_twice_the_bits_has_a_bd_rate_of_plus_100_percent() -> None:
    published = read_curve(PUBLISHED)
    assert [point.psnr for point in published.points] == sorted(point.psnr for point in published.points)
    twice = curve("twice", [Point(2 * point.bpp, point.psnr) for point in reversed(published.points)])
    assert difference(twice, published).bd_rate == pytest.approx(100)
    assert difference(published, twice).bd_rate == pytest.approx(-50)
    assert difference(published, published).bd_psnr == pytest.approx(0, abs=1e-9)
    assert difference(twice, published).overlap == pytest.approx(1)


def test_a_curve_that_is_one_decibel_better_has_a_bd_psnr_of_plus_1() -> None:
    published = read_curve(PUBLISHED)
    better = curve("better", [Point(point.bpp, point.psnr + 1) for point in published.points])
    delta = difference(better, published)
    assert delta.bd_psnr == pytest.approx(1)
    assert delta.bd_rate < -5
    lowest, highest = published.points[0].psnr, published.points[-1].psnr
    assert delta.overlap == pytest.approx((highest - lowest - 1) / (highest - lowest + 1))


def test_curves_that_cannot_be_compared_say_why() -> None:
    published = read_curve(PUBLISHED)
    one = curve("one", [Point(0.5, 31.0)])
    falling = curve("falling", [Point(0.2, 30.0), Point(0.4, 29.0), Point(0.6, 31.0)])
    far = curve("far", [Point(4.0, 50.0), Point(5.0, 52.0)])
    for other, words in ((one, "one has 1 point with PSNR"), (falling, "does not rise"), (far, "in common")):
        with pytest.raises(NoDifference, match=words):
            difference(other, published)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"results": {}}',
        '{"results": {"bpp": [1], "psnr-rgb": []}}',
        '{"results": {"bpp": [], "psnr-rgb": []}}',
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(InputError, match="--reference"):
        read_curve(tmp_path / "curve.json")


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ('{"bpp": [0.1, 0.2], "ssim": [0.9, 0.95]}', "has bpp, ssim; a curve needs bpp and one of psnr-rgb"),
        ('{"bpp": [0.1, 0.2], "psnr-rgb": [30, NaN]}', "psnr-rgb has nan"),
        ('{"bpp": [0.1, 1e999], "psnr-rgb": [30, 31]}', "bpp has inf"),
        ('{"bpp": [1%s], "psnr-rgb": [30]}' % ("0" * 400), "bpp has 1000"),
        ('{"bpp": [0, 0.2], "psnr-rgb": [30, 31]}', "bpp has 0"),
        ('{"bpp": ["0.1"], "psnr-rgb": [30]}', "bpp has '0.1'"),
        ('{"bpp": [true], "psnr-rgb": [30]}', "bpp has True"),
        ('{"bpp": 1, "psnr-rgb": [30]}', "bpp is no list"),
        ('{"bpp": [1, 2], "psnr-rgb": [30]}', "differ in length"),
        ('{"bpp": [1], "psnr-rgb": [30], "ms-ssim-rgb": [{}]}', "ms-ssim-rgb has"),
        ('{"bpp": [1], "ms-ssim-db-rgb": [-5000]}', "ms-ssim-db-rgb has -5000"),
        ('{"bpp": [1], "ms-ssim-db-rgb": [-299]}', "ms-ssim-db-rgb has -299"),
        ('{"bpp": [1], "ms-ssim-rgb": [5]}', "ms-ssim-rgb has 5"),
        ('{"bpp": [1], "ms-ssim-rgb": [-1e8]}', "ms-ssim-rgb has -100000000.0"),
        ('{"bpp": [1], "psnr-rgb": [30], "bpp": [2]}', r'result format.*\("bpp" is given twice\)'),
        ("[1]", "result format"),
        ("[" * 100000, "result format"),
    ],
)
def test_figures_that_no_codec_has_are_refused(tmp_path: Path, results: str, said: str) -> None:
    (tmp_path / "curve.json").write_text(f'{{"results": {results}}}')
    with pytest.raises(InputError, match=said):
        read_curve(tmp_path / "curve.json")


def test_a_curve_with_a_byte_order_mark_and_without_a_psnr_somewhere_is_read(tmp_path: Path) -> None:
    text = '{"results": {"bpp": [0.1, 0.2], "psnr-rgb": [30, null], "ms-ssim-rgb": [null, 1]}}'
    (tmp_path / "curve.json").write_text(text, encoding="utf-8-sig")
    assert read_curve(tmp_path / "curve.json").points == [Point(0.1, 30.0)]


def test_a_curve_of_ms_ssim_alone_is_drawn_and_has_no_bd_rate(tmp_path: Path) -> None:
    """The form of some of CompressAI's own results."""
    (tmp_path / "curve.json").write_text(
        '{"name": "theirs", "results": {"bpp": [0.2, 0.1], "ms-ssim-db-rgb": [20, 10]}}'
    )
    theirs = read_curve(tmp_path / "curve.json")
    assert theirs.points == [Point(0.1, None, pytest.approx(0.9)), Point(0.2, None, pytest.approx(0.99))]
    with pytest.raises(NoDifference, match="theirs has 0 points with PSNR"):
        difference(read_curve(PUBLISHED), theirs)
    plot(tmp_path / "rd.svg", "pictures", [read_curve(PUBLISHED), theirs])
    with_psnr, with_ms_ssim = (chart([read_curve(PUBLISHED), theirs], {}, quality) for quality in ("psnr", "ms_ssim"))
    assert with_psnr
    assert with_ms_ssim
    assert [line.name for line in with_psnr.lines] == [read_curve(PUBLISHED).name]
    assert [(line.name, len(line.marks)) for line in with_ms_ssim.lines] == [("theirs", 2)]


@pytest.mark.parametrize(("name", "shown"), [('"' + "x" * 10**6 + '"', "x" * 100), ("[1]", "c"), ('""', "c")])
def test_a_long_name_is_cut_and_one_that_is_no_text_is_the_file_s(tmp_path: Path, name: str, shown: str) -> None:
    (tmp_path / "c.json").write_text(f'{{"name": {name}, "results": {{"bpp": [1], "psnr-rgb": [30]}}}}')
    assert read_curve(tmp_path / "c.json").name == shown


@pytest.mark.filterwarnings("error")
def test_a_perfect_ms_ssim_has_no_decibels_and_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"results": {"bpp": [0.1, 0.2], "psnr-rgb": [30, 31], "ms-ssim-rgb": [1, 1]}}')
    plot(tmp_path / "rd.png", "pictures", [read_curve(tmp_path / "c.json")])
    with Image.open(tmp_path / "rd.png") as image:
        assert image.width < 1.5 * image.height
    plot(tmp_path / "none.png", "pictures", [curve("perfect", [Point(0.1, None, 1.0)])])


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", "$x_{$", "\x1b[2J\x00", "\u5199\u771f \ufffe", "\udcff"]
    plot(tmp_path / "rd.svg", "$^$ \u65e5\u672c", [curve(name, [Point(0.1, 30), Point(0.2, 31)]) for name in names])
    assert "\x1b" not in (tmp_path / "rd.svg").read_text()
    assert "<!-- _hidden -->" in (tmp_path / "rd.svg").read_text()


def test_a_plot_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rd.png").write_bytes(b"older")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            plot(tmp_path / "rd.png", "pictures", [read_curve(PUBLISHED)])
    assert (tmp_path / "rd.png").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["rd.png"]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"name": "a", "results": {"bpp": [0.5, 0.2], "psnr-rgb": [30, 28], "ms-ssim-rgb": [0.98, 0.95]}})
    )
    plot(tmp_path / "rd.png", "pictures", [read_curve(tmp_path / "a.json"), read_curve(PUBLISHED)])
    with Image.open(tmp_path / "rd.png") as image:
        assert image.width > 1.5 * image.height
    plot(tmp_path / "one.png", "pictures", [read_curve(PUBLISHED)])
    with Image.open(tmp_path / "one.png") as image:
        assert image.width < 1.5 * image.height
