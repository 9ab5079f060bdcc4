"""Quantizers: they put a float tensor on the grid that an int8 runtime stores, with straight-through gradients.

A thin layer over `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine`. Ranges and scales are buffers of
fixed shape, so that DDP, FSDP, `torch.compile` and safetensors handle them as usual. What is on and what is off is a
Python value, `Switches`, that all quantizers of a codec share.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.description.architecture import MOST_SPLITS
from codec.quantization.observers import Observer
from codec.quantization.splits import middle, places, shared_and_more

SMALLEST_SCALE = 2.0**-20
"""The scale of a tensor of zeros; far below any scale that matters."""


@dataclass
class Switches:
    """What the quantizers of a codec do; all of them share one object.

    Attributes:
        learn: activation quantizers observe what passes.
        follow: the scales of weights follow the weights.
        quantize: fake quantization is on.
        in_eval: fake quantization is on in `eval()` too.
    """

    learn: bool = True
    follow: bool = True
    quantize: bool = False
    in_eval: bool = True


class ActivationQuantizer(nn.Module):
    """Quantizes a tensor between two layers to uint8: scale * (q - zero_point), q in 0..255, one scale for the tensor.

    The range always contains zero, so that zero, and with it the padding of convolutions, is exact. With 16 bits it is
    int16 with zero point 0, and the largest magnitude of the range at 32767, as Arm's cores have it.

    Attributes:
        low, high: buffers, 0-dim, the learned range; low > high: there is none yet.
        steps: buffer, 0-dim, the number of optimizer steps that it was learned from.
        scale, zero_point: buffers, 0-dim, computed from the range by `fix_scale`.
        batch: buffer [3], float64, not saved: the observer's summary of the current step.
        learns: whether it learns its range; False where the range is given.
        bits: 8 or 16.
        frozen: scale and zero point as numbers, for an exporter.
    """

    low: Tensor
    high: Tensor
    steps: Tensor
    scale: Tensor
    zero_point: Tensor
    batch: Tensor

    def __init__(
        self,
        switches: Switches,
        observer: Observer,
        known_range: tuple[float, float] | None = None,
        only_in_eval: bool = False,
    ) -> None:
        """
        Args:
            observer: learns the range.
            known_range: the range, where it follows from what the tensor is; then the observer is not used.
            only_in_eval: in training mode the tensor stays as it is.
        """
        super().__init__()
        self.switches, self.observer, self.only_in_eval = switches, observer, only_in_eval
        self.learns, self.bits = known_range is None, 8
        self.frozen: tuple[float, int] | None = None
        low, high = known_range or (math.inf, -math.inf)
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("batch", torch.empty(3, dtype=torch.float64), persistent=False)
        self.forget_batch()

    def forward(self, x: Tensor) -> Tensor:
        if self.switches.learn and self.learns:
            self._observe(x.detach())
        if not self.on:
            return x
        if self.frozen:
            return torch.fake_quantize_per_tensor_affine(x, *self.frozen, *self.limits)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *self.limits)

    @property
    def on(self) -> bool:
        """Whether it quantizes now."""
        wanted = not self.only_in_eval if self.training else self.switches.in_eval
        return self.switches.quantize and wanted

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest q."""
        return (0, 255) if self.bits == 8 else (-32768, 32767)

    def integers(self, x: Tensor) -> Tensor:
        """q - zero_point of each value of this quantizer's output."""
        return round_ste(x / self.scale)

    def of_sums(self, accumulator: Tensor, unit: Tensor) -> Tensor:
        """The values of this quantizer's grid for the sums of a layer, integers in a unit [C, ..]; in place."""
        return _on_grid(accumulator, unit, self.scale)

    def _observe(self, x: Tensor) -> None:
        """Adds a micro-batch [B, ...] to the summary of the step."""
        inside = tuple(range(1, x.ndim))
        seen = self.observer.summarize(x.amin(inside).double(), x.amax(inside).double())
        self.batch.copy_(self.observer.combine(self.batch, seen))

    @torch.no_grad()
    def update_range(self, batch: Tensor, skipped: Tensor | None = None) -> None:
        """Moves the range by the summary of a step, combined over all ranks; then the next step begins.

        Args:
            skipped: bool, 0-dim: the step does not count, and the range stays as it is; None: it counts.
        """
        first, steps = self.steps == 0, self.steps + 1
        low, high = self.observer.batch_range(batch)
        next_low, next_high = self.observer.move((self.low, self.high), (low, high), steps)
        moved = torch.where(first, low, next_low), torch.where(first, high, next_high), steps
        for buffer, value in zip((self.low, self.high, self.steps), moved, strict=True):
            buffer.copy_(value if skipped is None else torch.where(skipped, buffer, value))
        self.forget_batch()

    def forget_batch(self) -> None:
        """Empties the summary of the step."""
        self.batch.fill_(self.observer.empty)

    @property
    def has_range(self) -> bool:
        """Whether there is a range; reads a tensor on the host."""
        return bool(self.low <= self.high)

    @torch.no_grad()
    def fix_scale(self) -> None:
        """Computes scale and zero point from the range."""
        scale, zero_point = self.grid()
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def grid(self, width: float = 1.0) -> tuple[Tensor, Tensor]:
        """Scale and zero point, both 0-dim, of a range `width` times as wide as the learned one."""
        low, high = width * self.low.clamp(max=0), width * self.high.clamp(min=0)
        if self.bits == 16:
            return (torch.maximum(high, -low) / 32767).clamp(min=SMALLEST_SCALE), torch.zeros_like(self.zero_point)
        scale = ((high - low) / 255).clamp(min=SMALLEST_SCALE)
        return scale, (-low / scale).round().clamp(0, 255).to(self.zero_point.dtype)

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}, bits={self.bits}"


class Widened(nn.Module):
    """The tensor of an 8-bit quantizer in 16 bits, for an operation whose other tensors have 16 bits.

    Its steps are 1/127 of the quantizer's. So an operand keeps its values, and a result is rounded twice, to 16 bits
    and then to 8; the ratio is odd, so that the first rounding never gives a half.

    Attributes:
        narrow: the 8-bit quantizer, which is registered elsewhere.
    """

    RATIO = 127
    bits, limits = 16, (-32768, 32767)

    def __init__(self, narrow: ActivationQuantizer) -> None:
        super().__init__()
        self._narrow = (narrow,)

    @property
    def narrow(self) -> ActivationQuantizer:
        return self._narrow[0]

    @property
    def scale(self) -> Tensor:
        return self.narrow.scale / self.RATIO

    @property
    def zero_point(self) -> Tensor:
        return torch.zeros_like(self.narrow.zero_point)

    @property
    def frozen(self) -> tuple[float, int] | None:
        """Scale and zero point as numbers, for an exporter."""
        return (self.narrow.frozen[0] / self.RATIO, 0) if self.narrow.frozen else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.narrow.on:
            return x
        if self.frozen:
            return torch.fake_quantize_per_tensor_affine(x, *self.frozen, *self.limits)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *self.limits)

    def integers(self, x: Tensor) -> Tensor:
        """q of each value of its output."""
        return round_ste(x / self.scale)

    def of_sums(self, accumulator: Tensor, unit: Tensor) -> Tensor:
        """See `ActivationQuantizer.of_sums`."""
        return _on_grid(accumulator, unit, self.scale)


def _on_grid(accumulator: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    return round_ste(accumulator.mul_(unit / scale)).mul_(scale)


Quantizer = ActivationQuantizer | Widened


class WeightQuantizer(nn.Module):
    """Quantizes a parameter to int8, symmetric: scale * q, q in -128..127, the largest magnitude at 127.

    Attributes:
        axis: the axis of the output channels, each with its own scale; None: one scale for all.
        zero_point: 0; or 128 with q in 0..255, for a parameter in a sum or a product with activations, because the
            operators of a runtime take two operands of one type. The values are the same.
        bits: 8, or 16 for a parameter in a sum or a product with activations of 16 bits; then the zero point is 0.
        split_axis: the axis of the channels that have splits, if any have.
        scale: buffer [channels], or [1].
        frozen: the one scale as a number, for an exporter.
    """

    scale: Tensor

    def __init__(self, switches: Switches, channels: int, axis: int | None, zero_point: int = 0) -> None:
        super().__init__()
        self.switches, self.axis, self.zero_point, self.bits = switches, axis, zero_point, 8
        self.frozen: float | None = None
        self.register_buffer("scale", torch.ones(1 if axis is None else channels))
        self._levels: tuple[nn.Module, ...] = ()
        self.split_axis = 0

    def follow_splits(self, levels: nn.Module, axis: int) -> None:
        """Gives the channels along an axis the splits of `Levels`, which are registered elsewhere."""
        self._levels, self.split_axis = (levels,), axis

    def forget_splits(self) -> None:
        """For a copy that has a channel for each split."""
        self._levels = ()

    @property
    def splits(self) -> Tensor | None:
        """For a layer that gives or takes levels: how many channels of the chip hold each channel, [M]; else None.

        A chip has n weights for a channel in n splits. One of them differs from the others, so that their sum has a
        grid that is n times as fine.
        """
        for levels in self._levels:
            return levels.get_buffer("splits")
        return None

    @property
    def input_splits(self) -> Tensor | None:
        """The splits of a layer that takes levels."""
        return None if self.split_axis == self.axis else self.splits

    @property
    def output_splits(self) -> Tensor | None:
        """The splits of a layer that gives levels."""
        return self.splits if self.split_axis == self.axis else None

    def forward(self, weight: Tensor, smallest_scale: Tensor | None = None) -> Tensor:
        if self.switches.follow:
            self.update_scale(weight, smallest_scale)
        if not self.on:
            return weight
        low, high = self.zero_point - self.largest - 1, self.zero_point + self.largest
        if self.frozen:
            return torch.fake_quantize_per_tensor_affine(weight, self.frozen, self.zero_point, low, high)
        if self.axis is None:
            zero = torch.full_like(self.scale, self.zero_point, dtype=torch.int32)
            return torch.fake_quantize_per_tensor_affine(weight, self.scale, zero, low, high)
        zeros, splits = torch.zeros_like(self.scale, dtype=torch.int32), self.splits_along(weight)
        if splits is None:
            return torch.fake_quantize_per_channel_affine(weight, self.scale, zeros, self.axis, low, high)
        coarse = self.coarse_along(weight)
        fine = weight.clamp(low * coarse, high * coarse) * splits
        limits = MOST_SPLITS * low, MOST_SPLITS * high
        return torch.fake_quantize_per_channel_affine(fine, self.scale, zeros, self.axis, *limits) / splits

    @property
    def largest(self) -> int:
        """The largest q, if the zero point is 0."""
        return (1 << (self.bits - 1)) - 1

    @property
    def on(self) -> bool:
        """Whether weights are fake-quantized now."""
        return self.switches.quantize and (self.training or self.switches.in_eval)

    @torch.no_grad()
    def update_scale(self, weight: Tensor, smallest_scale: Tensor | None = None) -> None:
        """Computes the scales: the largest magnitude / the largest q, but at least `smallest_scale` [channels]."""
        axis = self.axis
        magnitude = weight.detach().abs()
        largest = magnitude.max()[None] if axis is None else magnitude.transpose(0, axis).flatten(1).amax(1)
        scale = (largest / self.largest).clamp(min=SMALLEST_SCALE)
        if smallest_scale is not None:
            scale = torch.maximum(scale, smallest_scale.max()[None] if axis is None else smallest_scale)
        self.scale.copy_(scale)

    def integers(self, quantized: Tensor) -> Tensor:
        """q of each value of this quantizer's output."""
        return round_ste(quantized / self.scale_along(quantized))

    def of_chip(self, quantized: Tensor) -> Tensor:
        """q for each of the chip's channels."""
        integers, splits = self.integers(quantized), self.splits
        if splits is None:
            return integers
        channel, place = places(splits)
        in_middle = self._along(quantized, self.split_axis, place == middle(splits)[channel])
        both = shared_and_more(integers, self._along(quantized, self.split_axis, splits))
        shared, more = (each.index_select(self.split_axis, channel) for each in both)
        return shared + in_middle * more

    def scale_along(self, weight: Tensor) -> Tensor:
        """The scales in a shape that broadcasts over the parameter's."""
        scale, splits = self.coarse_along(weight), self.splits_along(weight)
        return scale if splits is None else scale / splits

    def coarse_along(self, weight: Tensor) -> Tensor:
        """The same without splits: the largest magnitude of a weight is so often the largest q."""
        return self._along(weight, self.axis or 0, self.scale)

    def splits_along(self, weight: Tensor) -> Tensor | None:
        """The splits in a shape that broadcasts over the parameter's; None if there are none."""
        return None if self.splits is None else self._along(weight, self.split_axis, self.splits)

    @staticmethod
    def _along(weight: Tensor, axis: int, values: Tensor) -> Tensor:
        """Values of an axis of a parameter in a shape that broadcasts over it."""
        shape = [1] * weight.ndim
        shape[axis] = -1
        return values.view(shape)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


@dataclass(eq=False)
class Wiring:
    """The quantizers around an operation.

    This is not a module: a module would register the quantizers a second time, and save and train them twice.

    Attributes:
        inputs: the quantizers of the operands; empty if one of the operands has none.
        output: the quantizer of the result, directly or after a rectifier; None if there is none.
        y_model: for the first layer of g_s: the entropy model of y, whose y_hat = symbol + median is its input.
    """

    inputs: tuple[Quantizer, ...] = ()
    output: Quantizer | None = None
    y_model: nn.Module | None = None


def round_ste(x: Tensor) -> Tensor:
    """Rounds half to even, with a straight-through gradient (Bengio et al. 2013, arXiv:1308.3432).

    Without gradients it rounds in place, because new memory costs more than the arithmetic: 0.12 s for 192x256x384
    where rounding in place takes 0.02 s.
    """
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round_()
