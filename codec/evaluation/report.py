"""`codec.evaluate --report`: one HTML file with curves, figures and pictures; it needs no network."""

import base64
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from coco224.files import whole_or_absent
from codec.evaluation.album import Reconstruction, Shown
from codec.evaluation.chart import FRAME, chart
from codec.evaluation.curves import Curve
from codec.evaluation.figures import Evaluated

COLUMNS = {
    "bpp": ("bits per pixel", ".4f"),
    "bpp_estimated": ("estimated", ".4f"),
    "psnr": ("PSNR in dB", ".3f"),
    "ms_ssim": ("MS-SSIM", ".5f"),
}
"""Heading and number format by figure."""


def write_report(
    path: Path,
    title: str,
    names: Sequence[str],
    measured: Sequence[Evaluated],
    curves: Sequence[Curve],
    against: Sequence[dict[str, Any]],
    shown: Sequence[Shown],
    failed: int = 0,
) -> None:
    """Writes the page, completely or not at all.

    Args:
        title: title of the evaluated pictures.
        names: names of all pictures.
        against: for each reference its "name" and, if they exist, "bd-rate", "bd-psnr" and "overlap".
        shown: the pictures to compare, all with the same codecs.
        failed: number of pictures that could not be evaluated.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    environment.filters["data_uri"] = _data_uri
    ours = [each.codec for each in shown[0].reconstructions if each.figures.bpp_estimated is not None] if shown else []
    files = list(dict.fromkeys([*(each.name for each in measured if each.blocks), *ours]))
    short = dict(zip(files, _without_shared_folders(files), strict=True))
    environment.filters["short"] = lambda name: short.get(name, name)
    labels = {each.point: short.get(each.name, each.name) for each in measured if each.point}
    choices = _choices(shown[0].reconstructions) if shown else []
    template = resources.files("codec.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=Path(title).name,
        names=_without_shared_folders(names),
        measured=measured,
        columns=COLUMNS,
        frame=FRAME,
        charts=[chart(curves, labels, quality) for quality in ("psnr", "ms_ssim")],
        against=against,
        shown=shown,
        choices=choices,
        numbers={codec: number for number, (codec, _) in enumerate(choices, 1)},
        rates=max(
            (sum(each.codec == choices[0][0] for each in picture.reconstructions) for picture in shown), default=1
        ),
        failed=failed,
    )
    with whole_or_absent(path) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")  # a name may hold bytes that are no text


def _choices(reconstructions: Sequence[Reconstruction]) -> list[tuple[str, bool]]:
    """The codecs to choose from, and whether each is shown at the quality that is nearest in size to the first."""
    codecs = list(dict.fromkeys(each.codec for each in reconstructions))
    several = {each.codec for each in reconstructions if each.name != each.codec}
    return [(codec, codec in several and codec != codecs[0]) for codec in codecs]


def _without_shared_folders(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that they have in common."""
    shared = os.path.commonpath([Path(path).parent.resolve() for path in paths])
    return [os.path.relpath(Path(path).parent.resolve() / Path(path).name, shared) for path in paths]


def _cell(value: float | None, style: str) -> Markup:
    """A number as a cell of a table, with the value to sort by."""
    if value is None:
        return Markup('<td data-value="">–</td>')
    if math.isinf(value):
        return Markup('<td data-value="Infinity">identical</td>')
    return Markup('<td data-value="{}">{}</td>').format(value, format(value, style))


def _data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
