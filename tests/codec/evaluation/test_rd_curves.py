"""Curves and their Bjontegaard differences, on figures whose answer is known."""

import json
from pathlib import Path

import pytest
from PIL import Image

from codec.errors import InputError
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
    for other, words in ((one, "one has one point"), (falling, "does not rise"), (far, "in common")):
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
