"""Training against CompressAI's way on the same GPU, and against the GPU's own matrix peak."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.speed import ROUNDS, STEPS, Step, matrix_peak, options, repeated, side
from benchmarks.harness import Apart, Row, alternate
from benchmarks.peers import CompressAIWay
from benchmarks.pictures import image_folder
from benchmarks.trainer import Trainer
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec
from codec.network.complexity import training_flops

SPEEDUP, OF_PEAK = 3.0, 0.4
RELU = BlockChoice("relu")


def against_compressai(setting: Setting) -> Iterator[Row]:
    """ReLU everywhere against CompressAI's example trainer, each in a process of its own; quality 8, batch 128."""
    quality, batch = (1, 2) if setting.tiny else (8, 128)
    pngs = image_folder(setting.coco224, setting.folder / "png", "png")
    run = (setting.coco224, setting.folder / "run", *options(setting, quality, "relu", batch))
    rounds, steps = (1, 1) if setting.tiny else (ROUNDS, STEPS)
    makers: dict[str, tuple[Any, ...]] = {
        "ours": (ours, steps, *run),
        "theirs": (theirs, steps, pngs, quality, batch, setting.device),
    }
    forks = setting.device == "cpu"
    with ExitStack() as stack:
        sides = {name: stack.enter_context(closing(Apart(*make, forks=forks))) for name, make in makers.items()}
        seconds = {name: value / steps for name, value in alternate(sides, rounds).items()}
        memory = {name: each.peak_mb for name, each in sides.items()}
    what = f"training, quality {quality}, batch {batch}, ReLU everywhere, MSE + bpp"
    yield Row(
        f"{what}, against CompressAI's way",
        seconds["theirs"] / seconds["ours"],
        "x",
        at_least=setting.bar(SPEEDUP),
        sides={f"{name}, pictures/s": batch / value for name, value in seconds.items()},
    )
    yield Row(
        f"peak memory of {what}, against CompressAI's way",
        memory["ours"] / memory["theirs"],
        "x",
        at_most=setting.bar(1.0),
        sides={f"{name}, MB": value for name, value in memory.items()},
    )
    yield _share_of_peak(setting, quality, batch, seconds["ours"], what)


def _share_of_peak(setting: Setting, quality: int, batch: int, seconds: float, what: str) -> Row:
    flops = training_flops(new_codec(Architecture(*zoo_widths(quality), RELU, RELU)), batch, side(setting)) / seconds
    peak = matrix_peak(setting)
    return Row(
        f"share of the measured bf16 matrix peak, {what}",
        flops / peak,
        "of the peak",
        at_least=setting.bar(OF_PEAK),
        sides={"ours, TFLOP/s": flops / 1e12, "a large matrix product, TFLOP/s": peak / 1e12},
    )


def ours(steps: int, coco224: Path, folder: Path, *options: str) -> Step:
    """A round of this trainer."""
    return repeated(Trainer(coco224, folder, *options).step, steps)


def theirs(steps: int, folder: Path, quality: int, batch: int, device: str) -> Step:
    """A round of CompressAI's way."""
    return repeated(CompressAIWay(folder, quality, batch, torch.device(device)).step, steps)
