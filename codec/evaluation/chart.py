"""The charts of the report page: the places of curves, points and ticks. `report.html` draws them as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.ticker import MaxNLocator

from coco224.errors import printable
from codec.evaluation.curves import Curve, Point

Quality = Literal["psnr", "ms_ssim"]

FRAME = LEFT, RIGHT, TOP, BOTTOM = 46, 412, 8, 256
"""The edges of the plot in a chart of 420x300; numbers and names of the axes are outside."""
MARGIN = 0.5
"""Room above and below the points, in dB."""

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#c56a00", "#8c564b", "#d057a5", "#0f8f9f")
"""Colours with a contrast of at least 3 against both backgrounds."""
MARKERS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",  # a circle
    "M-3.2-3.2h6.4v6.4h-6.4z",  # a square
    "M0-4.6 4.6 0 0 4.6-4.6 0z",  # a diamond
    "M0-4.2 4.2 3.2h-8.4z",  # a triangle that points up
    "M0 4.2-4.2-3.2h8.4z",  # one that points down
    "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",  # a plus
    "M0-1.9 2.2-4.1 4.1-2.2 1.9 0 4.1 2.2 2.2 4.1 0 1.9-2.2 4.1-4.1 2.2-1.9 0-4.1-2.2-2.2-4.1z",  # a cross
)
"""Outlines around (0, 0). There is one fewer than colours, so that 56 curves differ in colour or outline."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis: its text, and its place in the picture."""

    text: str
    place: float


@dataclass(frozen=True)
class Mark:
    """A point of a curve: its place in the picture, and the words that say what it is."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve: its marks from left to right, and how it is drawn."""

    name: str
    colour: str
    marker: str
    width: int
    marks: list[Mark]


@dataclass(frozen=True)
class Chart:
    """A quality over bits per pixel.

    Attributes:
        lines: in the order of the legend; the first one is drawn above the others.
    """

    x_name: str
    y_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


def chart(curves: Sequence[Curve], labels: Mapping[Point, str], quality: Quality) -> Chart | None:
    """The chart of a quality in dB; None if no curve has it.

    Args:
        labels: names of points that have their own name; the others have the name of their curve.
    """
    known = [_heights(each, quality) for each in curves]
    rates = [point.bpp for points in known for point, _ in points]
    heights = [high for points in known for _, high in points]
    if not rates:
        return None
    bits = _ticks(0, max(rates))
    decibels = _ticks(min(heights) - MARGIN, max(heights) + MARGIN)

    def mark(name: str, point: Point, high: float) -> Mark:
        x, y = _place(point.bpp, bits, LEFT, RIGHT), _place(high, decibels, BOTTOM, TOP)
        return Mark(x, y, _label(printable(labels.get(point, name)), point))

    lines = [
        Line(
            printable(each.name),
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            2 if place == 0 else 1,
            [mark(each.name, *found) for found in points],
        )
        for place, (each, points) in enumerate(zip(curves, known, strict=True))
        if points
    ]
    return Chart(
        "bits per pixel",
        "PSNR in dB" if quality == "psnr" else "MS-SSIM in dB",
        [Tick(_number(value, bits), _place(value, bits, LEFT, RIGHT)) for value in bits],
        [Tick(_number(value, decibels), _place(value, decibels, BOTTOM, TOP)) for value in decibels],
        lines,
    )


def _heights(each: Curve, quality: Quality) -> list[tuple[Point, float]]:
    """The points of a curve that can be drawn, with their PSNR or -10 log10(1 - MS-SSIM) in dB."""
    if quality == "psnr":
        found = [(point, point.psnr) for point in each.points if point.psnr is not None]
    else:
        scored = ((point, point.ms_ssim) for point in each.points)
        found = [(point, -10 * math.log10(1 - score)) for point, score in scored if score is not None and score < 1]
    return [(point, high) for point, high in found if math.isfinite(point.bpp) and math.isfinite(high)]


def _label(name: str, point: Point) -> str:
    similarity = "" if point.ms_ssim is None else f", MS-SSIM {point.ms_ssim:.4f}"
    quality = "" if point.psnr is None else f", {point.psnr:.2f} dB"
    return f"{name}: {point.bpp:.4f} bpp{quality}{similarity}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances, the first at or below `low`, the last at or above `high`."""
    return [float(value) for value in MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """The value with as many decimals as the distance of the ticks."""
    return format(value, f".{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f")


def _place(value: float, ticks: Sequence[float], first: float, last: float) -> float:
    return round(first + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (last - first), 2)
