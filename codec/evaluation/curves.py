"""Rate-distortion curves: CompressAI's result format, Bjontegaard differences, a plot."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.errors import InputError

PUBLISHED = Path(__file__).parent / "published" / "bmshj2018-factorized-mse-kodak.json"
FEWEST_POINTS = 2


@dataclass(frozen=True)
class Point:
    """One codec at one rate: means over pictures."""

    bpp: float
    psnr: float
    ms_ssim: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points in the order of their rates."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Difference:
    """How a curve lies against a reference (Bjontegaard, VCEG-M33, over piecewise cubic interpolation).

    Attributes:
        bd_rate: percent of bits for the same PSNR; negative is better.
        bd_psnr: dB for the same bits; positive is better.
        overlap: the PSNR range that both curves cover, as a share of that which one of them covers.
    """

    bd_rate: float
    bd_psnr: float
    overlap: float


class NoDifference(Exception):
    """Two curves that cannot be compared; the message says why."""


def curve(name: str, points: Sequence[Point]) -> Curve:
    return Curve(name, sorted(points, key=lambda point: point.bpp))


def read_curve(path: Path) -> Curve:
    """A JSON file in CompressAI's result format: {"name", "results": {"bpp": [], "psnr-rgb": [], "ms-ssim-rgb": []}}.

    Raises:
        InputError: it is none.
    """
    try:
        saved = json.loads(path.read_text())
        results = saved["results"]
        similarities = results.get("ms-ssim-rgb") or [None] * len(results["bpp"])
        rows = zip(results["bpp"], results["psnr-rgb"], similarities, strict=True)
        points = [Point(float(bpp), float(psnr), similarity) for bpp, psnr, similarity in rows]
    except OSError as error:
        raise InputError(f"--reference {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'--reference {path} is not in CompressAI\'s result format, {{"results": {{"bpp": [], "psnr-rgb": []}}}}'
        ) from error
    if not points:
        raise InputError(f"--reference {path} has no points")
    return curve(str(saved.get("name", path.stem)), points)


def difference(tested: Curve, reference: Curve) -> Difference:
    """BD-rate and BD-PSNR of a curve against a reference.

    Raises:
        NoDifference: a curve has fewer than two points or falls somewhere, or they have no PSNR in common.
    """
    import bjontegaard

    for each in (tested, reference):
        if len(each.points) < FEWEST_POINTS:
            raise NoDifference(f"{each.name} has one point, and a curve takes {FEWEST_POINTS}")
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
    return [point.bpp for point in each.points], [point.psnr for point in each.points]


def plot(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """PSNR over bpp and, where a curve has it, -10 log10(1 - MS-SSIM) beside it. The first curve stands out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    similar = any(point.ms_ssim is not None for each in curves for point in each.points)
    figure, axes = pyplot.subplots(1, 1 + similar, figsize=(7 * (1 + similar), 5), squeeze=False, layout="constrained")
    for place, each in enumerate(curves):
        style: dict[str, Any] = {"marker": "o", "linewidth": 2} if place == 0 else {"marker": ".", "linewidth": 1}
        axes[0, 0].plot(*_axes(each), label=each.name, **style)
        scored = [point for point in each.points if point.ms_ssim is not None and point.ms_ssim < 1]
        if similar and scored:
            decibels = [-10 * math.log10(1 - point.ms_ssim) for point in scored]  # type: ignore[operator]
            axes[0, 1].plot([point.bpp for point in scored], decibels, label=each.name, **style)
    for axis, label in zip(axes[0], ("PSNR of RGB [dB]", "MS-SSIM of RGB [dB]"), strict=False):
        axis.set(xlabel="bits per pixel", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format=path.suffix[1:])
    pyplot.close(figure)
