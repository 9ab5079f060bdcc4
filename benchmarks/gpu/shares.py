"""What a step's time on the GPU goes to, by the names of the kernels."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 3

_CONVOLUTIONS = ("conv", "fprop", "dgrad", "wgrad", "cudnn", "winograd", "nchwtonhwc", "nhwctonchw")
_PRODUCTS = ("gemm", "gemv", "nvjet", "cublas", "cutlass", "splitk", "::mm", "::bmm", "::addmm")
_REDUCTIONS = ("nccl", "gloo", "allreduce")


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
    total = by_kind(profiler.key_averages(), on_gpu)
    return Counter({kind: seconds / STEPS for kind, seconds in total.items()})


def by_kind(events: Iterable[Any], on_gpu: bool) -> "Counter[str]":
    """Seconds of a profile's averages by kind; of the operators that launch kernels, only the kernels count."""
    seconds: Counter[str] = Counter()
    for event in events:
        if not on_gpu:
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        elif event.device_type.name == "CUDA" and not event.is_user_annotation and not _from_host(event.key):
            seconds[kind_of(event.key)] += event.self_device_time_total / 1e6
    return seconds


def _from_host(kernel: str) -> bool:
    """Whether it copies from the host, beside the kernels and not between them."""
    return "memcpy htod" in kernel.lower()
