"""`python -m benchmarks.large`: memory and time of 12 and 48 megapixels, each command in a process of its own.

The pictures are a sample photograph side by side. `--before DIR` measures another checkout as well, at 12 megapixels
alone: its memory may grow with the picture. The system counts a process's memory from its parent's on, so this one
does not load torch before the end. ONNX Runtime takes all cores, whatever `--threads` says. All kinds of codecs take
hours; `--kinds` and `--megapixels` choose some.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, Row, publish
from coco224.photographs.decode import read_photograph
from coco224.photographs.sample import sample_splits
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH

SIZES = {12: (3000, 4000), 48: (6000, 8000)}
"""Megapixels: height and width."""
N, M, RATES = 128, 192, 2
MOST_GB = 1.5
SCALE = 2.0
"""Of y under a hyperprior: about that of its values, so that a file has a trained codec's size."""
PSNR = 5
"""A target in dB that codecs of random weights reach."""


@dataclass(frozen=True)
class Kind:
    """A kind of codec.

    Attributes:
        arch, act: its architecture, and the block of both transforms.
        rates: how many.
        int8: quantized.
    """

    arch: str = DEFAULT_ARCH
    act: str = "relu"
    rates: int = 1
    int8: bool = False

    def __str__(self) -> str:
        words = [self.arch, self.act, *(["several rates"] if self.rates > 1 else []), *(["int8"] if self.int8 else [])]
        return " ".join(words)


KINDS = (
    Kind(act="gdn"),
    *(Kind(arch, rates=rates, int8=int8) for arch in ARCHITECTURES for rates in (1, RATES) for int8 in (False, True)),
)


@dataclass(frozen=True)
class Cost:
    """What a process took: its largest resident memory, and the seconds of the processor and of the clock."""

    gb: float
    cpu_seconds: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large")
    parser.add_argument("--before", type=Path, help="checkout to compare with, at 12 megapixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--kinds", nargs="+", default=[], metavar="WORDS", help="kinds whose names have these words")
    parser.add_argument("--megapixels", type=int, nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--width", type=int, default=N, help="N; a small one is fast, and memory hardly depends on it")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if all(words in str(kind) for words in given.kinds)]
    publish("large", [row for kind in kinds for row in rows(kind, given)], {"N": given.width, "M": M})


def rows(kind: Kind, given: argparse.Namespace) -> Iterator[Row]:
    """What the commands take with a kind of codec."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            apart.submit(make_codec, folder / "c.safetensors", kind, given.width).result()
        for part in ("encoder", "decoder"):
            words = ("--ckpt", folder / "c.safetensors", "--part", part, "--out", folder / f"{part}.onnx")
            run(ROOT, 1, "export", *words, "--dynamic", *(["--precision", "int8"] if kind.int8 else []))
        for megapixels in given.megapixels:
            picture = make_picture(folder / f"{megapixels}.jpg", SIZES[megapixels])
            for threads in given.threads:
                now = measure(ROOT, folder, picture, threads, kind)
                old = {}
                if given.before and megapixels == 12:
                    old = measure(given.before.resolve(), folder, picture, threads, kind)
                for what, cost in now.items():
                    case = f"{what}, {kind}, {megapixels} megapixels, threads: {threads}"
                    yield row(case, cost, old.get(what))


def row(what: str, cost: Cost, before: Cost | None) -> Row:
    sides = {"processor, s": cost.cpu_seconds, "clock, s": cost.seconds}
    if before:
        sides |= {"before, GB": before.gb, "before, processor, s": before.cpu_seconds}
        sides |= {"before, clock, s": before.seconds}
    return Row(f"largest resident memory, {what}", cost.gb, "GB", at_most=MOST_GB, sides=sides)


def measure(checkout: Path, folder: Path, picture: Path, threads: int, kind: Kind) -> dict[str, Cost]:
    """What the commands of a checkout take for one picture."""
    packed, back, codec = folder / "p.bin", folder / "p.png", ("--checkpoint", folder / "c.safetensors")
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    compress = ("codec.compress", picture, packed, *codec, "--overwrite")
    encode = ("export.runtime", "encode", picture, packed, "--model", encoder)
    commands: dict[str, tuple[object, ...]] = {"codec.compress": compress}
    if kind.rates > 1:
        commands["codec.compress --target_psnr"] = (*compress, "--target_psnr", PSNR)
    commands["codec.decompress"] = ("codec.decompress", packed, back, *codec, "--overwrite")
    commands["codec.evaluate"] = ("codec.evaluate", "--images", picture, *codec, *(["--rates", 2] * (kind.rates > 1)))
    commands["export.runtime encode"] = encode
    if kind.rates > 1:
        commands["export.runtime encode --target_psnr"] = (*encode, "--target_psnr", PSNR, "--decoder", decoder)
    commands["export.runtime decode"] = ("export.runtime", "decode", packed, back, "--model", decoder)
    return {name: run(checkout, threads, *words) for name, words in commands.items()}


def run(checkout: Path, threads: int, *words: object) -> Cost:
    """A command of a checkout, in a process of its own."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
    process = subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=checkout, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Cost(used.ru_maxrss * 1024 / 1e9, used.ru_utime + used.ru_stime, time.perf_counter() - start)


def make_picture(path: Path, size: tuple[int, int]) -> Path:
    """A JPEG picture of this height and width."""
    source = sample_splits(include_val=True)["validation"]
    one = read_photograph(source.folder / source.names[0]).pixels()
    times = [-(-side // length) for side, length in zip(size, one.shape, strict=False)]
    Image.fromarray(np.tile(one, (*times, 1))[: size[0], : size[1]]).save(path, quality=92)
    return path


def make_codec(path: Path, kind: Kind, width: int) -> None:
    """A codec with random weights whose latents spread over some symbols."""
    import torch

    from benchmarks.deployment import with_ranges
    from codec.checkpoint import Description, save_codec
    from codec.description.architecture import Architecture, BlockChoice
    from codec.network.architectures import new_codec
    from codec.network.hyperprior import HyperCodec
    from codec.network.tables import with_tables

    torch.manual_seed(0)
    codec = new_codec(Architecture(width, M, BlockChoice(kind.act), BlockChoice(kind.act), arch=kind.arch))
    with torch.no_grad():
        codec.g_a[6].weight *= 20 if kind.arch == DEFAULT_ARCH else 50
        if isinstance(codec, HyperCodec):
            list(codec.h_s[4].parameters())[1][:M] = SCALE
        for matrix in codec.entropy_bottleneck.matrices:
            matrix += 1.0  # densities whose symbols fit 8 bits
    if kind.rates > 1:
        codec.add_rates(kind.rates, octaves=2.0)
    codec = with_tables(codec)
    save_codec(path, with_ranges(codec, kind.arch != DEFAULT_ARCH) if kind.int8 else codec, Description())


if __name__ == "__main__":
    main()
