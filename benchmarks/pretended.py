"""A GPU that is not there: torch answers as with an H100 what Inductor asks when it schedules code."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo.device_interface as interfaces
from torch._inductor import config, scheduler

GPU = torch.device("cuda:0")
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


def answers(value: Any) -> Any:
    """A function that always answers with this value."""
    return lambda *_, **__: value


ABOUT_CUDA = {
    **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), answers(0)),
    **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "current_stream", "set_rng_state"), answers(None)),
    **dict.fromkeys(("is_available", "is_bf16_supported"), answers(True)),
    "device_count": answers(1),
    "is_initialized": answers(False),
    "get_device_properties": answers(H100),
    "get_device_name": answers(H100.name),
    "get_device_capability": answers((H100.major, H100.minor)),
    "get_rng_state": answers(torch.zeros(16, dtype=torch.uint8)),
}
ABOUT_THE_INTERFACE = {
    **dict.fromkeys(("current_device", "exchange_device", "maybe_exchange_device", "memory_allocated"), answers(0)),
    **dict.fromkeys(("set_device", "synchronize", "current_stream", "raise_if_triton_unavailable"), answers(None)),
    **dict.fromkeys(("is_available", "is_bf16_supported", "is_triton_capable"), answers(True)),
    "device_count": answers(1),
    "get_device_properties": answers(H100),
    "get_compute_capability": answers(90),
}
ABOUT_A_WORKER = {"get_device_properties": answers(H100), "current_device": answers(0)}


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """In this context fake tensors may lie on `GPU`; nothing can run there."""
    interface = interfaces.CudaInterface
    with ExitStack() as stack:
        for name, answer in ABOUT_CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        for owner, known in ((interface, ABOUT_THE_INTERFACE), (interface.Worker, ABOUT_A_WORKER)):
            for name, answer in known.items():
                stack.enter_context(patch.object(owner, name, staticmethod(answer)))
        stack.enter_context(patch.object(scheduler, "has_triton", answers(True)))
        channels_last = answers(torch.channels_last)
        stack.enter_context(patch.object(torch._C, "_conv_determine_backend_memory_format", channels_last))
        stack.enter_context(config.patch(fx_graph_cache=False, compile_threads=1))
        yield
