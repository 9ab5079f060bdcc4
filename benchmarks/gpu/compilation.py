"""Options of Inductor that only a GPU can judge."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.numbers import BF16
from benchmarks.gpu.runs import largest_change, losses
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.speed import forget, options, seconds_of
from benchmarks.harness import Row
from benchmarks.trainer import Trainer
from training.backend import gpu_backend
from training.run import Run

OPTIONS: dict[str, dict[str, Any]] = {
    "CUDA graphs": {"triton.cudagraphs": True},  # one launch for a whole graph
    "kernels of up to 512 operations": {"max_fusion_size": 512},  # the likelihood's backward in fewer, larger kernels
}
BATCHES = (64, 16)
COMPARED = 5


def compile_options(setting: Setting) -> Iterator[Row]:
    """Speed with each option over the speed without it, and the losses of the first steps of both."""
    for batch in (2,) if setting.tiny else BATCHES:
        rate, series = _stepped(setting, "none", {}, batch)
        for name, chosen in OPTIONS.items():
            own_rate, own_series = _stepped(setting, name, chosen, batch)
            what = f"{name}, quality 8, relu, batch {batch}"
            sides = {"with, pictures/s": own_rate, "without, pictures/s": rate}
            yield Row(f"{what}: speed over that without", own_rate / rate, "x", sides=sides)
            change = largest_change(own_series, series)
            yield Row(f"{what}: losses, largest relative difference", change, "of it", at_most=BF16)


def _stepped(setting: Setting, name: str, chosen: dict[str, Any], batch: int) -> tuple[float, list[float]]:
    """Pictures per second, and the first losses; a dry run on a CPU is not compiled."""
    folder = setting.folder / f"{name} {batch}"
    trainer = Trainer(setting.coco224, folder, *options(setting, 8, "relu", batch))
    if chosen and setting.device == "cuda":
        compile_with(trainer.run, chosen)
    rate = batch / seconds_of(setting, trainer.step)
    trainer.finish()
    forget()
    return rate, losses(folder)[:COMPARED]


def compile_with(run: Run, chosen: dict[str, Any]) -> None:
    """Compiles a run's codec and loss with these options; before its first step."""
    run.codec.compile(fullgraph=True, dynamic=False, backend=gpu_backend, options=chosen)
    run.loss = torch.compile(run.objective, fullgraph=True, options=chosen)
