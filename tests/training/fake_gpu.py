"""What test_fake_gpu.py does in a process of its own: a step of a run on tensors that say they lie on a GPU.

torch's fake tensors have shape, type and device, and no values. torch refuses an operation on two devices, as on a GPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.library import Library

from coco224.batches import EvalBatches
from codec.evaluation.figures import evaluate
from train_accel import optimizer_step
from training.faults import Watch
from training.optim import clipped_together, make_optimizer
from training.options import parse
from training.precision import memory_format
from training.preempt import StopSignal
from training.run import Run
from training.setup import set_up

GPU = torch.device("cuda:0")

ON_HOST = ("rows", "places")
"""What a step takes from the host of a micro-batch."""

READS = ("_local_scalar_dense", "_unique2", "equal", "masked_select", "nonzero")
"""Operators that read values."""


@dataclass(frozen=True)
class Seen:
    """What a step and an evaluation after it did.

    Attributes:
        step, evaluation: what made the host wait for the GPU, by operator.
        types: of the step's convolutions.
        host: names of parameters, buffers and optimizer states that are not on the GPU after the step.
    """

    step: list[str]
    evaluation: list[str]
    types: set[str]
    host: list[str]


class FakeGpu(FakeTensorMode):
    """In its context there is a GPU. A value that is read there is 0.

    Attributes:
        waits: what made the host wait for it, by operator.
        types: of the results of convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.types: set[torch.dtype] = set()

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if self._reads(name, args, kwargs):
            self.waits.append(name)
        if name == "_local_scalar_dense":
            return 0.0
        result = super().dispatch(func, types, args, kwargs)
        if name == "convolution":
            self.types.add(result.dtype)
        return result

    def _reads(self, name: str, args: Any, kwargs: Any) -> bool:
        if name == "copy_":
            target, source, *non_blocking = args
            return on_gpu(source) and not on_gpu(target) and not any(non_blocking)
        if name == "_to_copy":
            return on_gpu(args[0]) and torch.device(kwargs.get("device") or GPU).type == "cpu"
        return name in READS and on_gpu(args[0])

    @contextmanager
    def here(self) -> Iterator[None]:
        """The context of this mode, in which the rest of torch, and the trainer, take the GPU for a real one."""
        waits = self.waits

        class Event:
            def record(self) -> None: ...

            def synchronize(self) -> None:
                waits.append("synchronize")

        with ExitStack() as stack:
            stack.enter_context(patch.object(torch.cuda, "Event", Event))
            stack.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
            stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
            stack.enter_context(patch.object(Run, "device", GPU))
            stack.enter_context(self)
            yield


def on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def fake_quantized(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Results of a fake quantization without values: torch has none for fake tensors."""
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


MISSING = Library("aten", "IMPL", "Meta")
for operator in (
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
):
    MISSING.impl(operator, fake_quantized)


def step_and_evaluate(words: list[str], done: int) -> Seen:
    """An optimizer step and an evaluation.

    Args:
        words: options of `train_accel.py`.
        done: steps on the CPU before; with QAT they learn the ranges.
    """
    run, stop, gpu = set_up(parse(words)), StopSignal(), FakeGpu()
    for _ in range(done):
        optimizer_step(run, stop)
        run.progress.step += 1
    shipped, size = run.shipped(), run.eval_batch
    batches = [next(run.micro_batches) for _ in range(run.grad_accum)]
    (pictured,) = EvalBatches(run.data.pictured, size, 0, 1, limit=size)
    pictures = gpu.from_tensor(pictured.images)

    with gpu.here():
        for codec in (run.codec, shipped):
            move(codec, gpu, memory_format(run.options.numerics))
        run = moved(run, [copied(batch, gpu) for batch in batches])
        with patch.object(Tensor, "backward", lambda loss: fill_gradients(run.codec, loss)):
            optimizer_step(run, stop)
        of_step, of_convolutions = list(gpu.waits), {str(each).removeprefix("torch.") for each in gpu.types}
        gpu.waits.clear()
        rates = None if shipped.architecture.rates == 1 else torch.linspace(0, 1, size)
        assert len(list(evaluate(shipped, [pictures], GPU, None, size, [rates]))) == size
    tensors = {**dict(run.codec.named_parameters()), **dict(run.codec.named_buffers())}
    tensors |= {kind: each for values in run.optimizer.state.values() for kind, each in values.items()}
    return Seen(of_step, gpu.waits, of_convolutions, [name for name, each in tensors.items() if not on_gpu(each)])


def move(codec: nn.Module, gpu: FakeGpu, memory_format: torch.memory_format) -> None:
    """Replaces a codec's parameters and buffers by fake ones on the GPU."""
    for module in codec.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = gpu.from_tensor(parameter).detach().to(GPU)
            fake = fake.to(memory_format=memory_format) if fake.ndim == 4 else fake
            module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)  # the attribute may be quantized
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = gpu.from_tensor(buffer).to(GPU)


def copied(batch: Any, gpu: FakeGpu) -> Any:
    """A micro-batch, with all on the GPU that a step does not need on the host."""
    fakes = {name: gpu.from_tensor(tensor) for name, tensor in batch._asdict().items() if tensor is not None}
    return batch._replace(**{name: fake if name in ON_HOST else fake.to(GPU) for name, fake in fakes.items()})


def moved(run: Run, batches: list[Any]) -> Run:
    """The run with what `set_up` makes of a codec that is on the GPU."""
    schedule, numerics = run.options.schedule, run.options.numerics
    rates = schedule.lr, schedule.weight_decay, run.options.entropy_model.eb_aux_lr
    return replace(
        run,
        optimizer=make_optimizer(run.codec, schedule.optimizer, *rates),
        clipped=clipped_together(run.codec, apart=run.objective.detaches_rate),
        scaler=GradScaler("cuda", enabled=run.scaler.is_enabled()),
        watch=Watch(numerics.overflow_tol, GPU, numerics.overflow_check),
        micro_batches=iter(batches),
    )


def fill_gradients(codec: nn.Module, loss: Tensor) -> None:
    """Stands for the backward, for which torch needs a GPU's streams."""
    assert on_gpu(loss)
    assert loss.shape == ()
    for parameter in codec.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
