"""`python -m benchmarks.large`: memory and time of 12 and 48 megapixels, each command in a process of its own.

The pictures are a sample photograph side by side. `--before DIR` measures another checkout as well, at 12 megapixels
alone: its memory may grow with the picture. The system counts a process's memory from its parent's on, so this one
does not load torch before the end. ONNX Runtime takes all cores, whatever `--threads` says.
"""

import argparse
import os
import subprocess
import sys
import time
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

SIZES = {12: (3000, 4000), 48: (6000, 8000)}
"""Megapixels: height and width."""
N, M = 128, 192
MOST_GB = 1.5


@dataclass(frozen=True)
class Cost:
    """What a process took: its largest resident memory, and the seconds of the processor and of the clock."""

    gb: float
    cpu_seconds: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large")
    parser.add_argument("--before", type=Path, help="checkout to compare with, at 12 megapixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--acts", nargs="+", default=["gdn", "relu"])
    given = parser.parse_args()
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for act in given.acts:
            with ProcessPoolExecutor(1, get_context("spawn")) as apart:
                apart.submit(make_codec, folder / "c.safetensors", act).result()
            for part in ("encoder", "decoder"):
                words = ("--ckpt", folder / "c.safetensors", "--part", part, "--out", folder / f"{part}.onnx")
                run(ROOT, 1, "export", *words, "--dynamic")
            for megapixels, size in SIZES.items():
                picture = make_picture(folder / f"{megapixels}.jpg", size)
                for threads in given.threads:
                    now = measure(ROOT, folder, picture, threads)
                    old = {}
                    if given.before and megapixels == 12:
                        old = measure(given.before.resolve(), folder, picture, threads)
                    for what, cost in now.items():
                        case = f"{what}, {act}, {megapixels} megapixels, threads: {threads}"
                        rows.append(row(case, cost, old.get(what)))
    publish("large", rows)


def row(what: str, cost: Cost, before: Cost | None) -> Row:
    sides = {"processor, s": cost.cpu_seconds, "clock, s": cost.seconds}
    if before:
        sides |= {"before, GB": before.gb, "before, processor, s": before.cpu_seconds}
        sides |= {"before, clock, s": before.seconds}
    return Row(f"largest resident memory, {what}", cost.gb, "GB", at_most=MOST_GB, sides=sides)


def measure(checkout: Path, folder: Path, picture: Path, threads: int) -> dict[str, Cost]:
    """What the commands of a checkout take for one picture."""
    packed, back, codec = folder / "p.bin", folder / "p.png", ("--checkpoint", folder / "c.safetensors")
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    commands = {
        "codec.compress": ("codec.compress", picture, packed, *codec, "--overwrite"),
        "codec.decompress": ("codec.decompress", packed, back, *codec, "--overwrite"),
        "codec.evaluate": ("codec.evaluate", "--images", picture, *codec),
        "export.runtime encode": ("export.runtime", "encode", picture, packed, "--model", encoder),
        "export.runtime decode": ("export.runtime", "decode", packed, back, "--model", decoder),
    }
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


def make_codec(path: Path, act: str) -> None:
    """A codec with random weights whose latents spread over some symbols."""
    import torch

    from codec.checkpoint import Description, save_codec
    from codec.description.architecture import Architecture, BlockChoice
    from codec.network.architectures import new_codec
    from codec.network.tables import with_tables

    torch.manual_seed(0)
    codec = new_codec(Architecture(N, M, BlockChoice(act), BlockChoice(act)))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    save_codec(path, with_tables(codec), Description())


if __name__ == "__main__":
    main()
