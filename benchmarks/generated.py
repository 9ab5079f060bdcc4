"""`python -m benchmarks.generated`: counts what the GPU code of a training step does; no GPU is needed.

The step is traced with fake tensors on the CPU. Then Inductor schedules the graphs for an H100, and the kernels are
counted. They are not run.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch._functorch.config as functorch
import torch._inductor.compile_fx as inductor
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._inductor import config, ir
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch._inductor.scheduler import Scheduler
from torch._inductor.utils import BoxedBool
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import _scoped_library
from torch.utils.checkpoint import checkpoint

from benchmarks.harness import Row, publish
from benchmarks.pretended import GPU, H100, pretended_gpu
from codec.blocks.gate import GateMlp
from codec.checkpoint.zoo import zoo_widths
from codec.compressai import GDN
from codec.description.architecture import Architecture, BlockChoice
from codec.network import bottleneck
from codec.network.architectures import new_codec
from training.backend import decompositions
from training.objective import RateDistortion
from training.precision import apply_local_fp32

QUALITY, BATCH, SIDE = 8, 128, 224
BLOCKS = ("relu", "gdn", "gate_mlp")
IN_FP32 = ("pow.Tensor_Scalar", "rsqrt")
"""The operators of these blocks that autocast computes in FP32 on a GPU, and on a CPU in the type of their input."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")

TRIED: dict[tuple[str, str], Callable[[], AbstractContextManager[Any]]] = {
    ("kernels of up to 512 operations", "relu"): lambda: config.patch(max_fusion_size=512),
    ("activations of 0.9 of the memory", "gdn"): lambda: functorch.patch(activation_memory_budget=0.9),
    ("GDN computed again in the backward", "gdn"): lambda: again_in_backward(GDN),
    ("the block computed again in the backward", "gate_mlp"): lambda: again_in_backward(GateMlp),
}
"""What the step does not do, and the block for which it is counted. Only a GPU can tell whether the first is faster."""


@dataclass
class Counts:
    """What generated code does.

    Attributes:
        kernels: Triton kernels.
        calls: library calls by operator: convolutions and matrix products.
        kernels_gb: memory that the kernels read and write, in GB; each kernel counts each of its buffers once.
        calls_gb: the same of the library calls.
    """

    kernels: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    kernels_gb: float = 0.0
    calls_gb: float = 0.0

    @property
    def gb(self) -> float:
        """All that is read and written, in GB."""
        return self.kernels_gb + self.calls_gb

    @property
    def convolutions(self) -> int:
        """Calls of convolutions."""
        return self.calls["convolution"] + self.calls["convolution_backward"]

    @property
    def products(self) -> int:
        """Calls of matrix products."""
        return sum(self.calls[name] for name in PRODUCTS)


@dataclass(frozen=True)
class Graph:
    """A graph that Inductor would compile, with its inputs: shape, strides and type of each tensor."""

    module: torch.fx.GraphModule
    inputs: list[Any]
    backward: bool


class Counted(Exception):
    """Ends a compilation after the scheduler's kernels were counted, before code is written."""


def main() -> None:
    """A row for each block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", nargs="*", default=BLOCKS)
    rows = []
    for block in parser.parse_args().blocks:
        counts = of_step(block)
        rows.append(row(block, counts, of_step(block, sums=False), of_step(block, ours=False)))
        for (what, only), change in TRIED.items():
            if only == block:
                with change():
                    rows.append(row_of_trial(what, block, of_step(block), counts))
    publish("generated", rows)


def row(block: str, counts: Counts, products: Counts, inductors: Counts) -> Row:
    """The result of a block.

    Args:
        products: the counts where the likelihood is computed with CompressAI's matrix products.
        inductors: the counts with Inductor's own decompositions.
    """
    sides = {
        "GB": counts.gb,
        "Triton kernels": counts.kernels,
        "convolutions": counts.convolutions,
        "matrix products": counts.products,
        "CompressAI's likelihood, GB": products.gb,
        "CompressAI's likelihood, Triton kernels": products.kernels,
        "CompressAI's likelihood, matrix products": products.products,
        "Inductor's decompositions, GB": inductors.gb,
        "Inductor's decompositions, Triton kernels": inductors.kernels,
    }
    return Row(
        f"memory traffic of a training step against the likelihood as CompressAI computes it, quality {QUALITY}, "
        f"batch {BATCH}, MSE + bpp, bf16, {block}",
        counts.gb / products.gb,
        "x",
        at_most=1.0,
        sides=sides,
        note=f"generated for an {H100.name} on a CPU, not run",
    )


def row_of_trial(what: str, block: str, counts: Counts, ours: Counts) -> Row:
    """The result of something that the step does not do."""
    sides = {"GB": counts.gb, "Triton kernels": counts.kernels, "convolutions": counts.convolutions}
    return Row(f"not taken: {what}, memory traffic of a step, {block}", counts.gb / ours.gb, "x", sides=sides)


def of_step(block: str, quality: int = QUALITY, batch: int = BATCH, sums: bool = True, ours: bool = True) -> Counts:
    """Counts of a step's forward, objective and backward, compiled as in `train_accel.py`; every part trains.

    Args:
        sums: the likelihood takes its form for GPUs.
        ours: convolutions are decomposed as by `training.backend`.
    """
    counts = Counts()
    for graph in graphs_of_step(block, quality, batch, sums, ours):
        count(graph, counts)
    return counts


def graphs_of_step(block: str, quality: int, batch: int, sums: bool, ours: bool) -> list[Graph]:
    """Forward and backward of codec and objective."""
    choice = BlockChoice(block)
    codec = new_codec(Architecture(*zoo_widths(quality), choice, choice)).train()
    apply_local_fp32(codec, "entropy")
    codec.to(memory_format=torch.channels_last)
    objective = RateDistortion(loss_type="mse")
    graphs: list[Graph] = []
    table = decompositions() if ours else None
    backend = partial(inductor.compile_fx, inner_compile=partial(keep, graphs), decompositions=table)
    compiled = partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    mode = FakeTensorMode()
    make_fake(codec, mode)
    # The tensors are traced on a CPU; so the form of the likelihood is said here.
    with mode, patch.object(bottleneck, "computes_sums", lambda _: sums):
        x = torch.empty(batch, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        with autocast_of_gpu():
            out = compiled(codec)(x, torch.zeros(batch, dtype=torch.int64), objective.detaches_rate)
        loss, _ = compiled(objective)(out, x)
        (loss + out["aux_loss"]).backward()
    return graphs


@contextmanager
def autocast_of_gpu() -> Iterator[None]:
    """Autocast to bf16 by a GPU's rules on the CPU: torch traces no backward on a GPU that is not there."""
    with _scoped_library("aten", "IMPL") as rules:
        for name in IN_FP32:
            rules.impl(name, in_fp32(name), "AutocastCPU")
        with torch.autocast("cpu", torch.bfloat16):
            yield


def in_fp32(name: str) -> Callable[..., Tensor]:
    """The operator, of its first argument in FP32."""
    operator, _, overload = name.partition(".")
    compute = getattr(getattr(torch.ops.aten, operator), overload or "default")

    def kernel(x: Tensor, *more: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            result: Tensor = compute(x.float(), *more)
            return result

    return kernel


def keep(graphs: list[Graph], module: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
    """Instead of Inductor's compilation of a graph: keeps the graph, and returns it as it is."""
    described = [(i.shape, i.stride(), i.dtype) if isinstance(i, Tensor) else i for i in inputs]
    graphs.append(Graph(module, described, bool(options.get("is_backward"))))

    def run(args: list[Any]) -> Any:
        return module(*args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def make_fake(codec: nn.Module, mode: FakeTensorMode, device: torch.device | str = "cpu") -> None:
    """Replaces a codec's parameters and buffers by fake tensors on a device."""
    for module in codec.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = mode.from_tensor(parameter.detach())
            with mode:
                setattr(module, name, nn.Parameter(fake.to(device)))
        for name, buffer in module.named_buffers(recurse=False):
            with mode:
                setattr(module, name, mode.from_tensor(buffer).to(device))


def again_in_backward(block: type[nn.Module]) -> AbstractContextManager[Any]:
    """In this context a block keeps only its input, and the backward computes it again."""
    forward = block.forward
    return patch.object(block, "forward", lambda self, x: checkpoint(forward, self, x, use_reentrant=False))


def count(graph: Graph, counts: Counts) -> None:
    """Lets Inductor schedule a graph for the GPU and adds its kernels to the counts."""

    def add(schedule: Scheduler) -> NoReturn:
        for node in schedule.nodes:
            gb, kernel = node.get_read_write_buffers_sizes() / 1e9, node.node
            if not isinstance(kernel, ir.ExternKernel):
                counts.kernels += 1
                counts.kernels_gb += gb
            elif kernel.op_overload is not None:  # None: a name for one of a call's results
                counts.calls[str(kernel.op_overload).split(".")[1]] += 1
                counts.calls_gb += gb
        raise Counted

    options: dict[str, Any] = {"cudagraphs": BoxedBool(False), "static_input_idxs": [], "graph_id": 0}
    with pretended_gpu(), FakeTensorMode(allow_non_fake_inputs=True) as mode, tracing(TracingContext(mode)):
        inputs = [
            torch.empty_strided(i[0], i[1], dtype=i[2], device=GPU) if isinstance(i, tuple) else i for i in graph.inputs
        ]
        module = make_fx(on_gpu(graph.module), decomposition_table=select_decomp_table())(*inputs)
        with patch.object(Scheduler, "codegen", add):
            try:
                inductor.compile_fx_inner(module, inputs, is_backward=graph.backward, **options)
            except InductorError as error:
                if not isinstance(error.inner_exception, Counted):
                    raise


def on_gpu(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with the GPU wherever it names a device."""
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}
        node.args = tuple(GPU if isinstance(arg, torch.device) else arg for arg in node.args)
        if node.target is torch.ops.aten.view.default:  # a view of another memory format may need a copy
            node.target = torch.ops.aten.reshape.default
    module.recompile()
    return module


if __name__ == "__main__":
    main()
