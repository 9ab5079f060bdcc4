"""Rate-distortion curves: CompressAI's result format, Bjontegaard differences, a plot."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coco224.errors import counted, printable
from coco224.files import in_words, read_json, whole_or_absent
from codec.errors import InputError
from codec.evaluation.drawing import plain_text

PUBLISHED = Path(__file__).parent / "published" / "bmshj2018-factorized-mse-kodak.json"
FEWEST_POINTS = 2
_COLUMNS = {"bpp": (0, 1e9), "psnr-rgb": (-1e9, 1e9), "ms-ssim-rgb": (-1, 1), "ms-ssim-db-rgb": (-3, 300)}
"""The least and the largest figure of a codec."""
_LONGEST_NAME = 100  # characters that are drawn: 200,000 take half a minute


@dataclass(frozen=True)
class Point:
    """A codec at one rate; all values are means over pictures, and at least one quality is known."""

    bpp: float
    psnr: float | None
    ms_ssim: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points in the order of their rates."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Difference:
    """The difference between a curve and a reference (Bjontegaard, VCEG-M33, with piecewise cubic interpolation).

    Attributes:
        bd_rate: difference in bits at the same PSNR, in percent; negative is better.
        bd_psnr: difference in dB at the same bits; positive is better.
        overlap: the PSNR range that both curves cover, as a share of the range that at least one covers.
    """

    bd_rate: float
    bd_psnr: float
    overlap: float


class NoDifference(Exception):
    """Raised for two curves that cannot be compared; the message says why."""


def curve(name: str, points: Sequence[Point]) -> Curve:
    return Curve(name, sorted(points, key=lambda point: point.bpp))


def read_curve(path: Path) -> Curve:
    """A JSON file in CompressAI's result format: {"name", "results": {"bpp": [], "psnr-rgb": [], "ms-ssim-rgb": []}}.

    Only one of the qualities is needed, and MS-SSIM may be "ms-ssim-db-rgb", -10 log10(1 - MS-SSIM). A point with null
    for its PSNR is left out: there every picture was decoded without any difference. Without a name, or with one that
    is no text, the curve has the name of its file; a long name is cut.

    Raises:
        InputError: the file has another format, no quality, or a value that is no figure of a codec.
    """
    try:
        saved = read_json(path)
        results = saved["results"]
        names = ", ".join(results.keys())
    except OSError as error:
        raise InputError(f"--reference {in_words(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f" ({' '.join(str(error).split())})" if isinstance(error, ValueError) else ""
        raise InputError(
            f'--reference {path} is not in CompressAI\'s result format, {{"results": {{"bpp": [], "psnr-rgb": []}}}}'
            f"{reason}"
        ) from error
    known = {name: _column(path, results, name) for name in _COLUMNS if results.get(name)}
    if "bpp" not in known or len(known) < 2:
        raise InputError(
            f"--reference {path} has {names or 'no results'}; a curve needs bpp and one of psnr-rgb, ms-ssim-rgb and "
            "ms-ssim-db-rgb"
        )
    if len({len(column) for column in known.values()}) > 1:
        raise InputError(f"--reference {path}: its lists differ in length; give one value a point")
    rows = (dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True))
    points = [point for row in rows if (point := _point(row))]
    if not points:
        raise InputError(f"--reference {path} has no points")
    name = saved.get("name")
    return curve(name[:_LONGEST_NAME] if name and isinstance(name, str) else path.stem, points)


def _point(row: dict[str, float | None]) -> Point | None:
    """The point of a row; None if its rate or its quality is null."""
    bpp, psnr, similarity, decibels = (row.get(name) for name in _COLUMNS)
    if similarity is None and decibels is not None:
        similarity = 1 - 10 ** (-decibels / 10)
    quality = psnr if "psnr-rgb" in row else similarity
    return None if bpp is None or quality is None else Point(bpp, psnr, similarity)


def _column(path: Path, results: dict[str, Any], name: str) -> list[float | None]:
    """A list of the results: numbers within their limits, or null."""
    values = results[name]
    if not isinstance(values, list):
        raise InputError(f"--reference {path}: {name} is no list")
    low, high = _COLUMNS[name]
    for value in values:
        number = type(value) in (int, float) and low <= value <= high  # nor NaN, nor infinite
        if value is not None and not (number and (name != "bpp" or value > 0)):
            raise InputError(
                f"--reference {path}: {name} has {printable(repr(value))[:40]}, which is no figure of a codec"
            )
    return [None if value is None else float(value) for value in values]


def difference(tested: Curve, reference: Curve) -> Difference:
    """BD-rate and BD-PSNR of a curve against a reference.

    Raises:
        NoDifference: a curve has fewer than two points with PSNR or falls somewhere, or the curves have no PSNR in
            common.
    """
    import bjontegaard

    for each in (tested, reference):
        known = len(_axes(each)[0])
        if known < FEWEST_POINTS:
            raise NoDifference(
                f"{each.name} has {counted(known, 'point')} with PSNR, and BD-rate takes {FEWEST_POINTS}"
            )
        if any(b <= a for axis in _axes(each) for a, b in itertools.pairwise(axis)):
            raise NoDifference(f"{each.name} does not rise everywhere")
    (_, ours), (_, theirs) = _axes(tested), _axes(reference)
    overlap = min(ours[-1], theirs[-1]) - max(ours[0], theirs[0])
    settings = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    if overlap > 0:
        rate = float(bjontegaard.bd_rate(*_axes(reference), *_axes(tested), **settings))
        psnr = float(bjontegaard.bd_psnr(*_axes(reference), *_axes(tested), **settings))
        if math.isfinite(rate) and math.isfinite(psnr):
            return Difference(rate, psnr, overlap / (max(ours[-1], theirs[-1]) - min(ours[0], theirs[0])))
    raise NoDifference(f"{tested.name} and {reference.name} have no PSNR or no rate in common")


def _axes(each: Curve) -> tuple[list[float], list[float]]:
    """Rates and PSNR of the points that have it."""
    known = [(point.bpp, point.psnr) for point in each.points if point.psnr is not None]
    return [bpp for bpp, _ in known], [psnr for _, psnr in known]


def plot(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Plots PSNR and, if a curve has it, MS-SSIM as -10 log10(1 - MS-SSIM) over bpp. The first curve is emphasized."""
    from matplotlib.figure import Figure

    scored = [[point for point in each.points if point.ms_ssim is not None and point.ms_ssim < 1] for each in curves]
    similar = any(scored)
    content = io.BytesIO()
    with plain_text():
        figure = Figure(figsize=(7 * (1 + similar), 5))
        axes = figure.subplots(1, 1 + similar, squeeze=False)
        side = 0.1 / (1 + similar)
        figure.subplots_adjust(side, 0.1, 1 - side / 4, 0.9, 0.15)  # a computed layout takes twice as long to draw
        for place, each in enumerate(curves):
            style: dict[str, Any] = {"marker": "o", "linewidth": 2} if place == 0 else {"marker": ".", "linewidth": 1}
            if _axes(each)[0]:
                axes[0, 0].plot(*_axes(each), label=printable(each.name), **style)
            if scored[place]:
                decibels = [-10 * math.log10(1 - point.ms_ssim) for point in scored[place]]  # type: ignore[operator]
                axes[0, 1].plot([point.bpp for point in scored[place]], decibels, label=printable(each.name), **style)
        for axis, label in zip(axes[0], ("PSNR of RGB [dB]", "MS-SSIM of RGB [dB]"), strict=False):
            axis.set(xlabel="bits per pixel", ylabel=label)
            axis.grid(alpha=0.3)
            if axis.lines:  # given by hand: a name that begins with _ would be left out
                axis.legend(axis.lines, [line.get_label() for line in axis.lines])
        figure.suptitle(printable(title))
        figure.savefig(content, dpi=150, format=path.suffix[1:])
    with whole_or_absent(path) as beside:
        beside.write_bytes(content.getvalue())
