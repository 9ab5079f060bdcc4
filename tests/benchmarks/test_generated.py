"""The count of generated GPU code, which needs no GPU."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._dynamo import config
from torch._subclasses import FakeTensorMode
from torch.cuda.amp import common

from benchmarks.generated import BLOCKS, autocast_of_gpu, make_fake, of_step
from benchmarks.pretended import GPU
from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: what torch remembers of the GPU would break later compilations on the CPU.

    It is no fork: autograd refuses to work in one if an earlier test has started its threads.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_a_step_s_gpu_code_has_its_convolutions_and_no_matrix_product(pool: ProcessPoolExecutor) -> None:
    counts = pool.submit(of_step, "relu", quality=1, batch=2).result(timeout=300)
    assert counts.calls == {"convolution": 8, "convolution_backward": 8}
    assert counts.products == 0
    assert 0 < counts.kernels < 90
    assert 0 < counts.gb < 0.27  # with Inductor's own decompositions 0.28


@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_is_counted_in_the_types_that_a_gpu_computes_in(block: str, pool: ProcessPoolExecutor) -> None:
    on_cpu, on_gpu = pool.submit(types_of, block).result(timeout=300)
    assert on_cpu == on_gpu
    assert ("convolution", torch.bfloat16) in on_gpu


class Recorded(FakeTensorMode):
    """Fake tensors, and the operators that gave them, with their types."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, torch.dtype]] = []

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().dispatch(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self.found.append((func.overloadpacket.__name__, result.dtype))
        return result


def types_of(block: str) -> list[list[tuple[str, torch.dtype]]]:
    """The operators of g_a and g_s with their types, as they are counted and with a GPU's own autocast."""
    with (
        patch.object(common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        config.patch(fake_tensor_cache_enabled=False),  # what is cached runs through fewer operators
    ):
        own = torch.autocast("cuda", torch.bfloat16)
        return [run_fake(block, device, context) for device, context in (("cpu", autocast_of_gpu()), (GPU, own))]


def run_fake(block: str, device: Any, autocast: AbstractContextManager[Any]) -> list[tuple[str, torch.dtype]]:
    choice = BlockChoice(block)
    codec, mode = new_codec(Architecture(8, 12, choice, choice)), Recorded()
    make_fake(codec, mode, device)
    with mode, autocast:
        x = torch.empty(2, 3, 64, 64, device=device)
        mode.found.clear()
        codec.g_s(codec.g_a(x))
    return mode.found
