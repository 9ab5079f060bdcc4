"""`codec.evaluate --report`: curves, figures and pictures as one HTML file that needs no network."""

import base64
import io
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from coco224.files import whole_or_absent
from codec.evaluation.album import Shown
from codec.evaluation.curves import Curve, Point
from codec.evaluation.figures import Evaluated

COLUMNS = {
    "bpp": ("bits per pixel", ".4f"),
    "bpp_estimated": ("estimated", ".4f"),
    "psnr": ("PSNR in dB", ".3f"),
    "ms_ssim": ("MS-SSIM", ".5f"),
}
"""Figure: its heading and its format."""

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#c56a00", "#8c564b", "#d057a5", "#0f8f9f")
"""With a contrast of 3 or more to both backgrounds."""
MARKERS = "osD^vPX*"
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def write_report(
    path: Path,
    title: str,
    names: Sequence[str],
    measured: Sequence[Evaluated],
    curves: Sequence[Curve],
    against: Sequence[dict[str, Any]],
    shown: Sequence[Shown],
) -> None:
    """Writes the page, whole or not at all.

    Args:
        title: of what was evaluated on.
        names: of all its pictures.
        against: for each reference its "name" and, where there are any, its "bd-rate", "bd-psnr" and "overlap".
        shown: the pictures to compare, each with the same codecs.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    environment.filters["data_uri"] = _data_uri
    files = [each.name for each in measured if each.blocks]
    short = dict(zip(files, _without_shared_folders(files), strict=True))
    environment.filters["short"] = lambda name: short.get(name, name)
    labels = {each.point: short.get(each.name, each.name) for each in measured if each.point}
    template = resources.files("codec.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=Path(title).name,
        names=_without_shared_folders(names),
        measured=measured,
        columns=COLUMNS,
        figures=[_figure(curves, labels, quality) for quality in ("psnr", "ms_ssim")],
        against=against,
        shown=shown,
    )
    with whole_or_absent(path) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")  # a name may hold bytes that are no text


def _without_shared_folders(paths: Sequence[str]) -> list[str]:
    """The paths from where they part."""
    shared = os.path.commonpath([Path(path).parent.resolve() for path in paths])
    return [os.path.relpath(Path(path).parent.resolve() / Path(path).name, shared) for path in paths]


def _cell(value: float | None, style: str) -> Markup:
    """A number as a table's cell, with what to sort it by."""
    if value is None:
        return Markup('<td data-value="">–</td>')
    if math.isinf(value):
        return Markup('<td data-value="Infinity">identical</td>')
    return Markup('<td data-value="{}">{}</td>').format(value, format(value, style))


def _data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _figure(curves: Sequence[Curve], labels: dict[Point, str], quality: str) -> Markup:
    """A quality over bits per pixel as SVG, in the page's own colours; empty where no curve has it.

    Each point's marker has the class "point" and a data-label that says what it is.

    Args:
        labels: points that have a name of their own.
        quality: "psnr" or "ms_ssim", drawn in dB.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    known = [
        [(point, height) for point in each.points if (height := _height(point, quality)) is not None] for each in curves
    ]
    if not any(known):
        return Markup()
    # hashsalt: the same curves give the same file, and the two figures of a page no equal ids
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": quality, "text.parse_math": False}):
        figure = Figure(figsize=(5.2, 4), layout="constrained")
        axes = figure.add_subplot()
        for place, (each, points) in enumerate(zip(curves, known, strict=True)):
            if not points:
                continue
            axes.plot(
                [point.bpp for point, _ in points],
                [height for _, height in points],
                label=each.name,
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                linewidth=2 if place == 0 else 1,
                zorder=3 if place == 0 else 2,
                gid=f"curve-{place}",
            )
        axes.set(xlabel="bits per pixel", ylabel="PSNR in dB" if quality == "psnr" else "MS-SSIM in dB")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = ElementTree.fromstring(file.getvalue())
    for place, (each, points) in enumerate(zip(curves, known, strict=True)):
        markers = svg.iterfind(f".//*[@id='curve-{place}']//{{{SVG}}}use")
        for marker, (point, _) in zip(markers, points, strict=True):
            marker.set("class", "point")
            marker.set("data-label", _label(labels.get(point, each.name), point))
    return _inline(svg)


def _height(point: Point, quality: str) -> float | None:
    """PSNR, or MS-SSIM as -10 log10(1 - MS-SSIM), in dB."""
    if quality == "psnr":
        return point.psnr
    return None if point.ms_ssim is None or point.ms_ssim >= 1 else -10 * math.log10(1 - point.ms_ssim)


def _label(name: str, point: Point) -> str:
    similarity = "" if point.ms_ssim is None else f", MS-SSIM {point.ms_ssim:.4f}"
    return f"{name}: {point.bpp:.4f} bpp, {point.psnr:.2f} dB{similarity}"


def _inline(svg: ElementTree.Element) -> Markup:
    """The picture as part of a page: black is the text's colour, the size is the page's, ids are those in use."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    for name in ("width", "height"):
        del svg.attrib[name]
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
        if parent.tag == f"{{{SVG}}}g":
            parent.attrib.pop("id", None)
    return Markup(ElementTree.tostring(svg, encoding="unicode").replace("#000000", "currentColor"))
