"""The output of an evaluation: a table on the terminal, differences from references, and files of figures."""

import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coco224.errors import counted, one_line
from codec.evaluation.curves import Curve, NoDifference, difference
from codec.evaluation.figures import Evaluated
from codec.evaluation.pictures import Pictures

COLUMNS = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "bpp": "bpp", "bpp_estimated": "bpp-estimated"}
ALARM = 0.01
"""With up-to-date CDF tables, real and estimated bits differ by at most this share,"""
OVERHEAD = 20
"""plus the bytes of a file that code no symbol: the header and the last word of the coder."""


def print_table(pictures: Pictures, measured: list[Evaluated], failed: int = 0) -> None:
    """Prints one line per codec, and the number of pictures that a mean leaves out.

    Args:
        failed: number of pictures that could not be evaluated; `pictures` does not include them.
    """
    width = max(len("checkpoint"), *(len(one_line(each.name)) for each in measured))
    print(f"{one_line(pictures.title)}: {counted(len(pictures.names), 'picture')}, means over pictures")
    print(f"{'checkpoint':{width}}  PSNR dB  MS-SSIM     bpp  estimated")
    for each in measured:
        cells = [format(each.averages[key], style) if key in each.averages else "-" for key, style in
                 (("psnr", ".3f"), ("ms_ssim", ".5f"), ("bpp", ".4f"), ("bpp_estimated", ".4f"))]  # fmt: skip
        print(f"{one_line(each.name):{width}}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>6}  {cells[3]:>9}")
    small = sum(row.ms_ssim is None for row in measured[0].rows)
    identical = max(sum(row.psnr == math.inf for row in each.rows) for each in measured)
    if failed:
        print(f"{counted(failed, 'picture')} failed; the means leave them out")
    if small:
        print(f"{counted(small, 'picture')} under 161 pixels, without MS-SSIM")
    if identical:
        print(f"{counted(identical, 'picture')} came back identical, without PSNR")


def differences(tested: Curve, references: list[Curve]) -> list[dict[str, Any]]:
    """Prints BD-rate and BD-PSNR against each reference, and returns them as --json contains them."""
    against = []
    for reference in references:
        entry: dict[str, Any] = {"name": reference.name, "results": _columns(reference)}
        try:
            delta = difference(tested, reference)
        except NoDifference as reason:
            print(one_line(f"against {reference.name}: no BD-rate, {reason}"))
        else:
            entry |= {"bd-rate": delta.bd_rate, "bd-psnr": delta.bd_psnr, "overlap": delta.overlap}
            print(
                f"against {one_line(reference.name)}: BD-rate {delta.bd_rate:+.2f} %, BD-PSNR {delta.bd_psnr:+.3f} dB "
                f"({len(tested.points)} and {len(reference.points)} points, {delta.overlap:.0%} of the PSNR range)"
            )
        against.append(entry)
    return against


def _columns(each: Curve) -> dict[str, list[float | None]]:
    return {
        "psnr-rgb": [point.psnr for point in each.points],
        "ms-ssim-rgb": [point.ms_ssim for point in each.points],
        "bpp": [point.bpp for point in each.points],
    }


def alarm(each: Evaluated, names: list[str]) -> str | None:
    """An alarm if file sizes differ from the likelihoods' estimate, with the worst file; None if no file differs."""
    off = [  # a list: crops of one photograph have its name
        (row.bpp / row.bpp_estimated - 1, name)
        for name, row in zip(names, each.rows, strict=True)
        if row.bpp and row.bpp_estimated and _beyond(row.bpp, row.bpp_estimated, row.pixels)
    ]
    if not off:
        return None
    share, worst = max(off, key=lambda each: abs(each[0]))
    files = f"{len(off)} of {counted(len(names), 'file')} {'is' if len(off) == 1 else 'are'}"
    return (
        f"ALARM: {each.name}: {files} off the likelihoods' estimate, {worst} by "
        f"{share:+.2%}: its CDF tables are stale; train on from it (--init_checkpoint) to rebuild them"
    )


def _beyond(real: float, estimated: float, pixels: int) -> bool:
    return abs(real - estimated) * pixels > ALARM * estimated * pixels + 8 * OVERHEAD


def as_results(pictures: Pictures, ours: list[Evaluated]) -> dict[str, Any]:
    """CompressAI's result format: every list has one entry per checkpoint."""
    results = {label: [each.averages.get(name) for each in ours] for name, label in COLUMNS.items()}
    return {
        "name": "npu-image-codec",
        "description": pictures.title,
        "checkpoints": [each.name for each in ours],
        "results": results,
    }


def write_rows(path: Path, names: list[str], measured: list[Evaluated]) -> None:
    """Writes a CSV row for each codec and picture, in UTF-8; bytes of a name that are not text are escaped."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "picture", *COLUMNS])
        for each in measured:
            for name, row in zip(names, each.rows, strict=True):
                values = asdict(row)
                writer.writerow([_cell(each.name), _cell(name), *(values[column] for column in COLUMNS)])


def _cell(name: str) -> str:
    """The name in a form that no spreadsheet reads as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
