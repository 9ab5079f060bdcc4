"""How often a training step makes the host wait for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.harness import Row
from benchmarks.trainer import Trainer

STEPS = 10
WARMUP = 3
_SAYS = "synchronizing CUDA operation"


def host_waits(setting: Setting) -> Iterator[Row]:
    """Waits of a compiled step, with the lines that wait."""
    setting.needs_gpu("a CPU computes in the host's own order: nothing waits")
    trainer = Trainer(setting.coco224, setting.folder / "run", *setting.options("--act", "relu"))
    for _ in range(WARMUP):
        trainer.step()
    found = waits(trainer.step, STEPS)
    lines = ", ".join(f"{line} {count / STEPS:g}" for line, count in found.most_common())
    yield Row("waits of the host for the GPU, relu, bf16", found.total() / STEPS, "a step", at_most=1, note=lines)


def waits(step: Callable[[], object], steps: int) -> "Counter[str]":
    """The waits of so many steps, by the line of Python that waited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    of_waits = [each for each in caught if _SAYS in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in of_waits)
