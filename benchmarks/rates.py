"""`python -m benchmarks.rates`: one checkpoint of several rates against checkpoints of one rate each.

    python -m benchmarks.rates --images kodak --several all/last.safetensors --single q1/last.safetensors \
        q2/last.safetensors ... --encoder enc.onnx --decoder dec.onnx

All figures are from real files. The single-rate checkpoints must be of one architecture, each of them trained for as
many steps as the one of several rates.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Row, publish
from codec.blocks import load_plugin
from codec.checkpoint import open_codec
from codec.errors import InputError
from codec.evaluation.coded import through_files
from codec.evaluation.compare import numbers_of
from codec.evaluation.curves import Curve, NoDifference, Point, curve, difference
from codec.evaluation.figures import Figures, means, measure_pictures, sums_and_counts
from codec.evaluation.pictures import open_pictures
from codec.files import FileCodec
from codec.targets import TargetOptions, code
from export.runtime import Model, decode, encode

BARS = {"bmshj2018_factorized": 1.0, "bmshj2018_hyperprior": 1.0, "mbt2018_mean": 2.0}
"""BD-rate against single-rate codecs, in percent, at most."""
OF_INT8, OF_BETWEEN, OF_TIME, OF_TARGET = 2.0, 0.5, 1 / 6, 98.0
SHARES = (0.15, 0.3, 0.5, 0.7, 0.9)
"""The targets of a picture: so far from its smallest to its largest file, on a logarithmic scale."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True, help="folder of pictures, such as Kodak's")
    parser.add_argument("--several", type=Path, required=True, help="the checkpoint of several rates")
    parser.add_argument("--single", type=Path, nargs="+", required=True, help="checkpoints of one rate each")
    parser.add_argument("--encoder", type=Path, help="int8 graph of a codec of several rates, with what lies beside it")
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--plugin")
    parser.add_argument("--name", default="rates", help="of the result")
    given = parser.parse_args(argv)
    if given.plugin:
        load_plugin(given.plugin)
    pair = (given.encoder, given.decoder) if given.encoder and given.decoder else None
    singles = [point_of(FileCodec(open_codec(path)), given.images) for path in given.single]
    rows, curves = compared(given.several, singles, given.single, pair, given.images)
    publish(given.name, rows, {"pictures": Path(given.images).name, "curves": {c.name: as_lists(c) for c in curves}})


def compared(
    of_all: Path, of_one: Sequence[Point], timed: Sequence[Path], pair: tuple[Path, Path] | None, images: str
) -> tuple[list[Row], list[Curve]]:
    """One checkpoint of several rates against one for each rate.

    Args:
        of_one: the points of the single-rate codecs.
        timed: the runs whose time is that of the single-rate codecs.
        pair: int8 graphs of several rates, encoder and decoder.

    Returns:
        The rows, and the curves that they are from.
    """
    codec = open_codec(of_all)
    arch, files = codec.arch, FileCodec(codec)
    trained = [number for number in numbers_of(codec, None) if number is not None]
    singles = curve("one rate each", of_one)
    several = curve("several rates", [point_of(files, images, rate) for rate in trained])
    halfway = [(a + b) // 2 for a, b in itertools.pairwise(trained)]
    between = curve("between them", [point_of(files, images, rate) for rate in halfway])
    what = f"{arch}: one checkpoint of {len(trained)} rates against {len(of_one)} of one"
    rows = [
        bd_rate(what, several, singles, BARS[arch]),
        between_row(arch, between, several),
        *target_rows(arch, files, images),
        time_row(arch, of_all, timed),
    ]
    curves = [several, singles, between]
    if pair:
        encoder, decoder = Model(pair[0], "encoder"), Model(pair[1], "decoder")
        int8 = curve("int8", [runtime_point((encoder, decoder), images, rate / trained[-1]) for rate in trained])
        rows.append(bd_rate(f"{arch}: one int8 pair against single-rate codecs in float", int8, singles, OF_INT8))
        rows.append(bd_rate(f"{arch}: one int8 pair against the float codec of all rates", int8, several, None))
        curves.append(int8)
    return rows, curves


def point_of(files: FileCodec, images: str, rate: int | None = None) -> Point:
    """A codec at a rate: means over pictures, of real files."""
    decoded = through_files(files, open_pictures(images, None, True, 8).read(0, 1), rate=rate)
    return mean_of([each.figures for each in decoded])


def runtime_point(pair: tuple[Model, Model], images: str, rate: float) -> Point:
    """The same of a pair of exported graphs in ONNX Runtime."""
    rows: list[Figures] = []
    for pixels in pictures(images):
        data = encode(pixels, pair[0], TargetOptions(rate=rate))
        x, x_hat = (torch.from_numpy(each).permute(2, 0, 1)[None] for each in (pixels, decode(data, pair[1])))
        rows += measure_pictures(x, x_hat, None, [data])
    return mean_of(rows)


def mean_of(rows: list[Figures]) -> Point:
    figures = means(sums_and_counts(rows))
    return Point(figures["bpp"], figures["psnr"], figures.get("ms_ssim"))


def pictures(images: str) -> Iterator[NDArray[np.uint8]]:
    """The pictures, uint8 [H, W, 3]."""
    for _, batch in open_pictures(images, None, True, 1).read(0, 1):
        for x in batch:
            yield np.ascontiguousarray(x.permute(1, 2, 0).numpy())


def bd_rate(what: str, tested: Curve, reference: Curve, at_most: float | None) -> Row:
    try:
        found = difference(tested, reference)
    except NoDifference as reason:
        raise InputError(f"{what}: {reason}") from reason
    sides = {"BD-PSNR, dB": found.bd_psnr, "shared PSNR range, %": 100 * found.overlap}
    return Row(f"{what}: BD-rate", found.bd_rate, "%", at_most=at_most, sides=sides)


def between_row(arch: str, between: Curve, trained: Curve) -> Row:
    """How far the points halfway between trained rates lie from the curve through these, in bits at equal PSNR."""
    found = difference(between, trained).bd_rate
    what = f"{arch}: rates halfway between the trained ones, off their curve"
    return Row(what, abs(found), "%", at_most=OF_BETWEEN, sides={"BD-rate, %": found})


def target_rows(arch: str, files: FileCodec, images: str) -> Iterator[Row]:
    """Files for target sizes: how many are within, and how much of the target they use."""
    within, used = [], []
    for pixels in pictures(images):
        picture = files.codable(torch.from_numpy(pixels).permute(2, 0, 1))
        ends = [len(code(picture, TargetOptions(rate=rate))) for rate in (0.0, 1.0)]
        for share in SHARES:
            target = round(ends[0] * (ends[1] / ends[0]) ** share)
            size = len(code(picture, TargetOptions(target_bytes=target)))
            within.append(size <= target)
            used.append(100 * size / target)
    count, least = {"files": float(len(within))}, {"least, %": min(used)}
    yield Row(f"{arch}: files within --target_bytes", 100 * fmean(within), "%", at_least=100.0, sides=count)
    what = f"{arch}: share of the target that a file uses, mean"
    yield Row(what, fmean(used), "%", at_least=OF_TARGET, sides=least)


def time_row(arch: str, several: Path, singles: Sequence[Path]) -> Row:
    """Training time of the whole curve against that of the single-rate codecs, from the runs' own records."""
    ours, theirs = seconds_of(several), sum(map(seconds_of, singles))
    what = f"{arch}: training time of the curve against {len(singles)} trainings"
    sides = {"one, s": ours, "the others, s": theirs}
    return Row(what, ours / theirs if theirs else 0.0, "x", at_most=OF_TIME, sides=sides)


def seconds_of(checkpoint: Path) -> float:
    """The seconds that the run beside a checkpoint computed, without evaluations; 0 if its record is not there."""
    folder, seconds, before = checkpoint.parent, 0.0, 0
    if not (folder / "metrics.jsonl").exists() or not (folder / "summary.json").exists():
        return 0.0
    batch = json.loads((folder / "summary.json").read_text())["global_batch"]
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            seconds += (row["step"] - before) * batch / row["images_per_second"]
            before = row["step"]
    return seconds


def as_lists(each: Curve) -> dict[str, list[float | None]]:
    return {"bpp": [p.bpp for p in each.points], "psnr": [p.psnr for p in each.points]}


if __name__ == "__main__":
    main()
