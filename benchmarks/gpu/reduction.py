"""Two ranks of the trainer's step: their speed against one, and the share of all-reduce."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.processes import start, start_ranks, succeed
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shares import busy_seconds
from benchmarks.gpu.speed import options, seconds_of
from benchmarks.harness import Row
from benchmarks.trainer import Trainer

BATCH = 64  # a rank


def all_reduce(setting: Setting) -> Iterator[Row]:
    """Quality 8, ReLU: pictures/s of two ranks over those of one, and the time of all-reduce."""
    batch = 2 if setting.tiny else BATCH
    succeed(start(measure, setting, "one", batch, log=setting.folder / "one.log"))
    succeed(*start_ranks(setting, "two", measure, setting, "two", batch))
    one, two = (json.loads((setting.folder / f"{name}.json").read_text()) for name in ("one", "two"))
    what = f"training, quality 8, relu, batch {batch} a rank"
    yield Row(
        f"two ranks over one, {what}",
        2 * one["step"] / two["step"],
        "x",
        at_least=setting.bar(1.8),
        sides={"one, pictures/s": batch / one["step"], "two, pictures/s": 2 * batch / two["step"]},
    )
    yield Row(f"all-reduce, part of a step, {what}", two["busy"].get("all-reduce", 0.0) / two["step"], "of the step")


def measure(setting: Setting, name: str, batch: int) -> None:
    """Writes what this process, or rank 0 of several, measures to `folder/NAME.json`."""
    trainer = Trainer(setting.coco224, setting.folder / name, *options(setting, 8, "relu", batch))
    figures = {"step": seconds_of(setting, trainer.step), "busy": busy_seconds(trainer.step)}
    if os.environ.get("RANK", "0") == "0":
        Path(setting.folder / f"{name}.json").write_text(json.dumps(figures))
