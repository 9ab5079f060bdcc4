"""What a step's time on the GPU goes to, by the names of the kernels."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 3

_CONVOLUTIONS = ("conv", "fprop", "dgrad", "wgrad", "cudnn", "winograd", "nchwtonhwc", "nhwctonchw")
_PRODUCTS = ("gemm", "gemv", "nvjet", "cublas", "cutlass", "splitk", "::mm", "::bmm", "::addmm")
_REDUCTIONS = ("nccl", "gloo")
_FROM_HOST = "memcpy htod"  # beside the kernels, not between them


def kind_of(kernel: str) -> str:
    """ "convolutions", "matrix products", "all-reduce" or "pointwise", which is everything else.

    A kernel of Triton is generated code around the libraries' convolutions and products, whatever its name lists.
    """
    name = kernel.lower()
    if any(word in name for word in _REDUCTIONS):
        return "all-reduce"
    if name.startswith("triton_"):
        return "pointwise"
    if any(word in name for word in _CONVOLUTIONS):
        return "convolutions"
    return "matrix products" if any(word in name for word in _PRODUCTS) else "pointwise"


def busy_seconds(step: Callable[[], object]) -> "Counter[str]":
    """Seconds a step in which the GPU runs kernels, by kind; without a GPU, in which the CPU runs operators."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
    seconds: Counter[str] = Counter()
    events: Any = profiler.key_averages()
    for event in events:
        if on_gpu and _is_kernel(event):
            seconds[kind_of(event.key)] += event.self_device_time_total / 1e6 / STEPS
        elif not on_gpu:
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / STEPS
    return seconds


def _is_kernel(event: Any) -> bool:
    on_device = event.device_type.name == "CUDA" and not event.is_user_annotation
    return on_device and _FROM_HOST not in event.key.lower()
