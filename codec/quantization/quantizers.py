"""Fake quantization: what an int8 runtime stores, in float, with straight-through gradients.

A thin layer over `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine`. Ranges and scales live in buffers
of fixed shape, so that DDP, FSDP, `torch.compile` and safetensors see nothing unusual; what is on and what is off is a
Python value that all quantizers of a codec share.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST_SCALE = 2.0**-20
"""Of a tensor that is all zeros; far under what matters."""

EMA_STEPS = 100
"""The moving average of the ranges: the plain mean of the first steps, then a new step has this fraction's weight."""


@dataclass
class Switches:
    """What the quantizers of a codec do, shared by all of them.

    Attributes:
        learn: activations' ranges take in what passes.
        follow: weights' scales follow the weights.
        quantize: fake quantization is on.
        in_eval: it is on in `eval()` too.
    """

    learn: bool = True
    follow: bool = True
    quantize: bool = False
    in_eval: bool = True


class ActivationQuantizer(nn.Module):
    """A tensor between two layers as uint8, affine, one scale for all of it: scale * (q - zero_point), q in 0..255.

    The range always holds zero, so that zero, and the zeros that convolutions pad with, are exact.

    Buffers, 0-dim: `low` and `high` (the range that was learned), `steps` (from how many), `scale` and `zero_point`
    (what `settle` makes of the range). `frozen` is (scale, zero point) as numbers, for an exporter. `batch` [3] is what
    the step has shown, in float64, so that no order of adding does: sums over its pictures and their number (ema), or
    the greatest of all (minmax, the low end negated).
    """

    low: Tensor
    high: Tensor
    steps: Tensor
    scale: Tensor
    zero_point: Tensor
    batch: Tensor

    def __init__(
        self, switches: Switches, observer: str, known: tuple[float, float] | None = None, only_in_eval: bool = False
    ) -> None:
        """
        Args:
            observer: "ema" (moving average of the least and the greatest value of a picture, which leaves out what is
                rare) or "minmax" (of all pictures).
            known: the range where it follows from what the tensor is; then nothing is learned.
            only_in_eval: training sees the tensor unquantized.
        """
        super().__init__()
        self.switches, self.observer, self.only_in_eval = switches, observer, only_in_eval
        self.learns = known is None
        self.frozen: tuple[float, int] | None = None
        low, high = known or (math.inf, -math.inf)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("batch", torch.empty(3, dtype=torch.float64), persistent=False)
        self.forget_batch()

    def forward(self, x: Tensor) -> Tensor:
        if self.switches.learn and self.learns:
            self._see(x.detach())
        wanted = not self.only_in_eval if self.training else self.switches.in_eval
        if not (self.switches.quantize and wanted):
            return x
        if self.frozen:
            return torch.fake_quantize_per_tensor_affine(x, *self.frozen, 0, 255)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)

    def counts(self, x: Tensor) -> Tensor:
        """The integers q - zero_point of values that this quantizer gave."""
        return whole(x / self.scale)

    def _see(self, x: Tensor) -> None:
        """Adds what each picture of a micro-batch spans to what the step has shown."""
        rest = tuple(range(1, x.ndim))
        low, high = x.amin(rest).double(), x.amax(rest).double()
        if self.observer == "ema":
            self.batch += torch.stack([low.sum(), high.sum(), torch.ones_like(low).sum()])
        else:
            seen = torch.stack([-low.min(), high.max(), torch.ones_like(low).max()])
            self.batch.copy_(torch.maximum(self.batch, seen))

    @torch.no_grad()
    def take(self, batch: Tensor) -> None:
        """A step's `batch`, reduced over the ranks, into the range that is kept; then the next step begins."""
        first = self.steps == 0
        self.steps += 1
        if self.observer == "ema":
            low, high = (batch[:2] / batch[2]).float()
            share = 1 / self.steps.clamp(max=EMA_STEPS)
            next_low, next_high = torch.lerp(self.low, low, share), torch.lerp(self.high, high, share)
        else:
            low, high = -batch[0].float(), batch[1].float()
            next_low, next_high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low.copy_(torch.where(first, low, next_low))
        self.high.copy_(torch.where(first, high, next_high))
        self.forget_batch()

    def forget_batch(self) -> None:
        """Before the next step."""
        self.batch.fill_(0 if self.observer == "ema" else -math.inf)

    @property
    def known(self) -> bool:
        """Whether there is a range (a host read)."""
        return bool(self.low <= self.high)

    @torch.no_grad()
    def settle(self) -> None:
        """Scale and zero point from the range."""
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        scale = ((high - low) / 255).clamp(min=SMALLEST_SCALE)
        self.scale.copy_(scale)
        self.zero_point.copy_((-low / scale).round().clamp(0, 255))

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}"


class WeightQuantizer(nn.Module):
    """A parameter as int8, symmetric: scale * q, q in -128..127, the greatest magnitude at 127.

    Attributes:
        axis: of the output channels, each with a scale of its own; None: one scale for all.
        zero_point: 0; 128 with q in 0..255 for a parameter that meets activations in a sum or a product, whose
            operators want one type. The values are the same.
        scale: buffer [channels], or [1].
        frozen: that one scale as a number, for an exporter.
    """

    scale: Tensor

    def __init__(self, switches: Switches, channels: int, axis: int | None, zero_point: int = 0) -> None:
        super().__init__()
        self.switches, self.axis, self.zero_point = switches, axis, zero_point
        self.frozen: float | None = None
        self.register_buffer("scale", torch.ones(1 if axis is None else channels))

    def forward(self, weight: Tensor, least: Tensor | None = None) -> Tensor:
        if self.switches.follow:
            self.settle(weight, least)
        if not self.on:
            return weight
        low, high = -128 + self.zero_point, 127 + self.zero_point
        if self.frozen:
            return torch.fake_quantize_per_tensor_affine(weight, self.frozen, self.zero_point, low, high)
        if self.axis is None:
            zero = torch.full_like(self.scale, self.zero_point, dtype=torch.int32)
            return torch.fake_quantize_per_tensor_affine(weight, self.scale, zero, low, high)
        zeros = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, self.scale, zeros, self.axis, low, high)

    @property
    def on(self) -> bool:
        """Whether weights are fake-quantized now."""
        return self.switches.quantize and (self.training or self.switches.in_eval)

    @torch.no_grad()
    def settle(self, weight: Tensor, least: Tensor | None = None) -> None:
        """Scales from the weights as they are, but none under `least` [channels]."""
        axis = self.axis
        magnitude = weight.detach().abs()
        greatest = magnitude.max()[None] if axis is None else magnitude.transpose(0, axis).flatten(1).amax(1)
        scale = (greatest / 127).clamp(min=SMALLEST_SCALE)
        if least is not None:
            scale = torch.maximum(scale, least.max()[None] if axis is None else least)
        self.scale.copy_(scale)

    def counts(self, quantized: Tensor) -> Tensor:
        """The integers q of a parameter that this quantizer gave."""
        return whole(quantized / self.scale_along(quantized))

    def scale_along(self, weight: Tensor) -> Tensor:
        """The scale in a shape that meets the parameter's."""
        shape = [1] * weight.ndim
        shape[self.axis or 0] = -1
        return self.scale.view(shape)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


@dataclass(eq=False)
class Wiring:
    """The quantizers around an operation.

    It is a plain object on purpose: a module that held them itself would save them, and train them, a second time.

    Attributes:
        inputs: the quantizers that the operands have passed; empty where one of them has none.
        output: the quantizer that the result goes through, a rectifier may come before it.
        bottleneck: of the first layer of g_s: the entropy bottleneck whose y_hat = symbol + median it takes.
    """

    inputs: tuple[ActivationQuantizer, ...] = ()
    output: ActivationQuantizer | None = None
    bottleneck: nn.Module | None = None


def whole(x: Tensor) -> Tensor:
    """x to whole numbers, half to even, with straight-through gradients; in place where there are none.

    Memory that is new costs more than arithmetic here: 0.12 s for 192x256x384 where rounding in place takes 0.02 s.
    """
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round_()
