"""`python -m benchmarks.profile`: where a step's time goes, CompressAI's way and ours, by operator."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Row, publish
from benchmarks.pictures import image_folder, prepared
from benchmarks.step import MSE, Step, compressai, trainer

TOP = 12
CONVOLUTIONS = ("convolution",)
LOOPS = ("Call CompiledFxGraph",)  # what the compiler made of everything between the convolutions


def main() -> None:
    """Quality 3, MSE + bpp, GDN kept: theirs first, since ours keeps the memory that it frees."""
    rows, details = [], {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        coco224 = prepared(folder)
        makers: dict[str, Callable[[], Step]] = {
            "CompressAI's way": lambda: compressai(image_folder(coco224, folder / "png", "png"), 3),
            "ours": lambda: trainer(coco224, folder / "run", "--act", "gdn", *MSE),
        }
        for side, step in makers.items():
            operators = profiled(step())
            total = sum(operators.values())
            convolutions = sum(ms for key, ms in operators.items() if any(word in key for word in CONVOLUTIONS))
            loops = sum(ms for key, ms in operators.items() if any(word in key for word in LOOPS))
            sides = {"step, ms": total, "convolutions, ms": convolutions}
            sides |= {"compiled loops, ms": loops} if loops else {}
            what = f"share of convolutions in a step, {side}, quality 3, GDN kept"
            rows.append(Row(what, convolutions / total, "of it", sides=sides))
            details[side] = dict(list(operators.items())[:TOP])
    publish("profile", rows, {"operators, ms": details})


def profiled(step: Step) -> dict[str, float]:
    """Milliseconds that each operator takes by itself in one step, most first."""
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        step()
    events: Any = profiler.key_averages()
    if torch.cuda.is_available():
        times = {event.key: event.self_device_time_total / 1e3 for event in events}
    else:
        times = {event.key: event.self_cpu_time_total / 1e3 for event in events}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()
