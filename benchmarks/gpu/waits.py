"""How often a training step makes the host wait for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.speed import forget
from benchmarks.gpu.standins import SYNCHRONIZES, warning_of_reads
from benchmarks.gpu.steps import RD_SIDE
from benchmarks.harness import Row
from benchmarks.trainer import Trainer
from training.outcome import Reading

STEPS, TINY_STEPS = 10, 3
WARMUP = 3
CASES: dict[str, tuple[object, ...]] = {
    "relu, bf16, mse": ("--act", "relu", "--loss_type", "mse"),
    "gdnish, bf16, rd": ("--act", "gdnish", "--loss_type", "rd"),
    # Of the steps of the warm-up the last one begins fake quantization.
    "relu, QAT, mse": (
        "--act",
        "relu",
        "--loss_type",
        "mse",
        "--qat",
        "true",
        "--qat_scope",
        "all",
        "--qat_calib_steps",
        2,
    ),
}
"""The options of the runs, whose steps must not wait at all."""


def host_waits(setting: Setting) -> Iterator[Row]:
    """Waits of a step, compiled where that is the default, with the lines that wait."""
    steps = TINY_STEPS if setting.tiny else STEPS
    for name, options in CASES.items():
        side = ("--input_size", RD_SIDE, "--batch_size", 2) if setting.tiny and "rd" in options else ()
        trainer = Trainer(setting.coco224, setting.folder / name, *setting.options(*options, *side))
        for _ in range(WARMUP):
            trainer.step()
        with nullcontext() if setting.device == "cuda" else warning_of_reads():
            found = waits(trainer.step, steps)
        lines = ", ".join(f"{line} {count / steps:g}" for line, count in found.most_common())
        yield Row(f"waits of the host for the GPU, {name}", found.total() / steps, "a step", at_most=0, note=lines)
        forget()


def waits(step: Callable[[], object], steps: int) -> "Counter[str]":
    """The waits of so many steps, by the line of Python that waited."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught, early_readings(found) as begin:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                begin()
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    of_waits = [each for each in caught if SYNCHRONIZES in str(each.message)]
    return found + Counter(f"{Path(each.filename).name}:{each.lineno}" for each in of_waits)


@contextmanager
def early_readings(found: "Counter[str]") -> Iterator[Callable[[], None]]:
    """Counts the readings that wait for their own step, for which torch has no warning.

    Yields:
        What is called when a step begins.
    """
    own: list[Reading] = []
    begin, values = Reading.__init__, Reading.values

    def made(reading: Reading, tensor: Tensor) -> None:
        begin(reading, tensor)
        own.append(reading)

    def read(reading: Reading) -> list[float]:
        if reading in own:
            own.remove(reading)  # it has arrived: another look does not wait
            found["the outcome of this step"] += 1
        return values(reading)

    with patch.object(Reading, "__init__", made), patch.object(Reading, "values", read):
        yield own.clear
