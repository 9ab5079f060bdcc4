"""Codecs measured on the same pictures, on every rank, and set against references: what `codec.evaluate` does."""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from coco224.files import whole_or_absent
from codec.blocks import load_plugin
from codec.checkpoint import open_codec
from codec.errors import InputError
from codec.evaluation.album import Album, Shown, spread
from codec.evaluation.coded import through_files
from codec.evaluation.curves import PUBLISHED, Curve, NoDifference, curve, difference, plot, read_curve
from codec.evaluation.figures import Evaluated, Figures, means, sums_and_counts
from codec.evaluation.pictures import Pictures, open_pictures
from codec.evaluation.ranks import Ranks
from codec.evaluation.references import QUALITIES, through_pillow
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.quantization.phases import disable_fake_quant

if TYPE_CHECKING:
    from codec.evaluate import EvaluateOptions

COLUMNS = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "bpp": "bpp", "bpp_estimated": "bpp-estimated"}
ALARM = 0.01
"""Real and estimated bits differ by no more than this where the tables fit the densities,"""
OVERHEAD = 20
"""but for the bytes of a file that no symbol asked for: its header, and the last word of the coder."""


def measure_all(options: "EvaluateOptions", checkpoints: list[str], references: list[str]) -> None:
    """Measures checkpoints and references; rank 0 prints the figures and writes the files that were asked for.

    Raises:
        InputError, DataError: a checkpoint, a reference or the pictures cannot be read.
    """
    ranks = Ranks.join()
    if options.plugin:
        load_plugin(options.plugin)
    codecs = {str(path): open_codec(Path(path)) for path in checkpoints}
    for codec in codecs.values():
        if codec.architecture.quantization and not options.qat_eval_fakequant:
            disable_fake_quant(codec)
    anchors = {path: open_codec(Path(path)) for path in references if _is_checkpoint(path)}
    known = [read_curve(_curve_file(name)) for name in references if _curve_file(name).suffix == ".json"]
    pictures = open_pictures(options.images, options.coco_dir, options.use_prepared, options.batch_size)
    formats = [name for name in references if name in QUALITIES]
    compared = len(codecs) + len(anchors) + len(formats)
    album = Album(spread(len(pictures.names), compared) if options.report else ())

    ours = [evaluate_codec(name, codec, pictures, ranks, album) for name, codec in codecs.items()]
    theirs = {"reference": [evaluate_codec(name, codec, pictures, ranks, album) for name, codec in anchors.items()]}
    for name in formats:
        theirs[name] = [evaluate_pillow(name, quality, pictures, ranks, album) for quality in QUALITIES[name]]
    shown = album.gather(ranks)
    if ranks.rank == 0:
        curves = [*_by_blocks(ours), *(_curve(*item) for item in theirs.items() if item[1]), *known]
        measured = [*ours, *(each for points in theirs.values() for each in points)]
        report(options, pictures, measured, ours, curves, shown)


def _is_checkpoint(reference: str) -> bool:
    return reference not in QUALITIES and _curve_file(reference).suffix != ".json"


def _curve_file(reference: str) -> Path:
    return PUBLISHED if reference == "published" else Path(reference)


def evaluate_codec(name: str, codec: Codec, pictures: Pictures, ranks: Ranks, album: Album) -> Evaluated:
    """A codec's figures on all pictures, on every rank; each rank codes its share, and keeps some in the album.

    Raises:
        InputError: its training has diverged.
    """
    files = FileCodec(codec.to(ranks.device), name)
    decoded = through_files(files, pictures.read(ranks.rank, ranks.world_size))
    evaluated = _evaluated(name, album.keep(name, name, decoded), pictures, ranks)
    codec.cpu()
    return replace(evaluated, blocks=codec.architecture.in_short())


def evaluate_pillow(name: str, quality: int, pictures: Pictures, ranks: Ranks, album: Album) -> Evaluated:
    """The same for a codec of Pillow's."""
    coded = through_pillow(name, quality, pictures.read(ranks.rank, ranks.world_size), ranks.device)
    point = f"{name} {quality}"
    return _evaluated(point, album.keep(name, point, coded), pictures, ranks)


def _evaluated(name: str, figures: Iterable[tuple[int, Figures]], pictures: Pictures, ranks: Ranks) -> Evaluated:
    share = len(range(ranks.rank, len(pictures.names), ranks.world_size))
    progress = tqdm(figures, desc=Path(name).name, total=share, unit=" pictures", leave=False, disable=ranks.rank != 0)
    rows = dict(ranks.gather(progress))
    assert rows.keys() == set(range(len(pictures.names))), "a picture was lost or counted twice"
    ordered = [rows[i] for i in range(len(rows))]
    if not all(math.isfinite(row.l1) for row in ordered):
        raise InputError(f"{name} gives values that are not finite; its training has diverged, use an earlier one")
    return Evaluated(name, ordered, means(sums_and_counts(ordered)))


def _by_blocks(ours: list[Evaluated]) -> list[Curve]:
    """A curve for each thing that codecs are made of, so that int8 and float do not share one."""
    alike: dict[str, list[Evaluated]] = {}
    for each in ours:
        alike.setdefault(each.blocks, []).append(each)
    return [_curve(blocks if len(alike) > 1 else "npu-image-codec", points) for blocks, points in alike.items()]


def _curve(name: str, points: list[Evaluated]) -> Curve:
    return curve(name, [each.point for each in points if each.point])


def report(
    options: "EvaluateOptions",
    pictures: Pictures,
    measured: list[Evaluated],
    ours: list[Evaluated],
    curves: list[Curve],
    shown: list[Shown],
) -> None:
    """Prints the figures, and writes the files that were asked for."""
    print_table(pictures, measured)
    against = compare(curves[0], curves[1:])
    alarms = [said for each in ours if (said := alarm(each, pictures.names))]
    for said in alarms:
        print(said)
    if options.json:
        with whole_or_absent(Path(options.json)) as path:
            path.write_text(
                json.dumps(as_results(pictures, ours) | {"references": against, "alarms": alarms}, indent=2) + "\n"
            )
    if options.per_image:
        with whole_or_absent(Path(options.per_image)) as path:
            write_rows(path, pictures.names, measured)
    if options.plot:
        plot(Path(options.plot), pictures.title, curves)
    if options.report:
        from codec.evaluation.report import write_report

        write_report(Path(options.report), pictures.title, pictures.names, measured, curves, against, shown)


def print_table(pictures: Pictures, measured: list[Evaluated]) -> None:
    """One line a codec, and how many pictures a mean leaves out."""
    width = max(len("checkpoint"), *(len(each.name) for each in measured))
    print(f"{pictures.title}: {len(pictures.names)} pictures, means over pictures")
    print(f"{'checkpoint':{width}}  PSNR dB  MS-SSIM     bpp  estimated")
    for each in measured:
        cells = [format(each.averages[key], style) if key in each.averages else "-" for key, style in
                 (("psnr", ".3f"), ("ms_ssim", ".5f"), ("bpp", ".4f"), ("bpp_estimated", ".4f"))]  # fmt: skip
        print(f"{each.name:{width}}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>6}  {cells[3]:>9}")
    small = sum(row.ms_ssim is None for row in measured[0].rows)
    identical = max(sum(row.psnr == math.inf for row in each.rows) for each in measured)
    if small:
        print(f"{small} pictures under 161 pixels, without MS-SSIM")
    if identical:
        print(f"{identical} pictures came back identical, without PSNR")


def compare(tested: Curve, references: list[Curve]) -> list[dict[str, Any]]:
    """BD-rate and BD-PSNR against each reference, printed and as --json has them."""
    against = []
    for reference in references:
        entry: dict[str, Any] = {"name": reference.name, "results": _columns(reference)}
        try:
            delta = difference(tested, reference)
        except NoDifference as reason:
            print(f"against {reference.name}: no BD-rate, {reason}")
        else:
            entry |= {"bd-rate": delta.bd_rate, "bd-psnr": delta.bd_psnr, "overlap": delta.overlap}
            print(
                f"against {reference.name}: BD-rate {delta.bd_rate:+.2f} %, BD-PSNR {delta.bd_psnr:+.3f} dB "
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
    """What to say where a file is not as large as its likelihoods promise, the worst named; None where none is."""
    off = {
        name: row.bpp / row.bpp_estimated - 1
        for name, row in zip(names, each.rows, strict=True)
        if row.bpp and row.bpp_estimated and _beyond(row.bpp, row.bpp_estimated, row.pixels)
    }
    if not off:
        return None
    worst = max(off, key=lambda name: abs(off[name]))
    return (
        f"ALARM: {each.name}: {len(off)} of {len(names)} files are off the likelihoods' estimate, {worst} by "
        f"{off[worst]:+.2%}: its tables do not fit its densities; train on from it, which makes them anew"
    )


def _beyond(real: float, estimated: float, pixels: int) -> bool:
    return abs(real - estimated) * pixels > ALARM * estimated * pixels + 8 * OVERHEAD


def as_results(pictures: Pictures, ours: list[Evaluated]) -> dict[str, Any]:
    """CompressAI's result format: one entry a checkpoint in each list."""
    results = {label: [each.averages.get(name) for each in ours] for name, label in COLUMNS.items()}
    return {
        "name": "npu-image-codec",
        "description": pictures.title,
        "checkpoints": [each.name for each in ours],
        "results": results,
    }


def write_rows(path: Path, names: list[str], measured: list[Evaluated]) -> None:
    """A CSV row for each codec and picture."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "picture", *COLUMNS])
        for each in measured:
            for name, row in zip(names, each.rows, strict=True):
                values = asdict(row)
                writer.writerow([each.name, name, *(values[column] for column in COLUMNS)])
