"""Fake quantization: what an int8 runtime stores, in float, with straight-through gradients.

A thin layer over `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine`. Ranges and scales live in buffers
of fixed shape, so that DDP, FSDP, `torch.compile` and safetensors see nothing unusual; what is on and what is off is a
Python value that all quantizers of a codec share.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SCALE = 2.0**-20
"""Of a tensor that is all zeros; far under what matters."""

LARGEST_BIAS = 2.0**30
"""In its unit, input scale times weight scale: an int32 accumulator holds it and everything that is added to it."""

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

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class QuantizedLayer(nn.Module):
    """Mixed in front of the class of a convolution or a linear layer by `quantize_layer`.

    Whatever its forward does, it reads fake-quantized weights, and its bias in the unit of an int32 accumulator: the
    input's scale times the weight's. The parameters, their names and their gradients stay.

    Attributes:
        fed_by: the quantizer that its input has been through (in a tuple, so that it is no submodule); None: none.
        latent_of: the bottleneck whose y_hat = symbol + median it takes (in a tuple again), where an int8 runtime gives
            it the symbols. In evaluation it then computes what is left of the medians: see `median_rounding`.
    """

    weight_quantizer: WeightQuantizer
    fed_by: tuple[ActivationQuantizer] | None = None
    latent_of: tuple[nn.Module] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        if self.latent_of is None or self.training or not self.weight_quantizer.on:
            return y
        assert isinstance(self, nn.ConvTranspose2d)
        assert isinstance(self.padding, tuple)
        error = self.median_rounding()[None]
        ones = torch.ones_like(x[:, :1])
        return y + F.conv_transpose2d(ones, error, None, self.stride, self.padding, self.output_padding)

    def median_units(self) -> Tensor:
        """What the medians add to the output through each tap, in units of the weights' scale, float64 [Cout, k, k].

        It is the sum of median times weight, for every tap that lies on the picture.
        """
        assert self.latent_of is not None
        medians = self.latent_of[0].medians().flatten().double()  # type: ignore[operator]
        return torch.einsum("m,mokl->okl", medians, self.weight.double()) / self.weight_quantizer.scale.view(-1, 1, 1)

    def median_rounding(self) -> Tensor:
        """The rounding of these sums to whole units, as integer weights of constant channels hold them, [Cout, k, k].

        A symbol's scale is 1, so a unit is no small thing beside the next layer's scale.
        """
        units = self.median_units()
        return ((units.round() - units) * self.weight_quantizer.scale.view(-1, 1, 1)).float()

    @property
    def weight(self) -> Tensor:
        parameter = self._parameters["weight"]
        assert parameter is not None
        quantized: Tensor = self.weight_quantizer(parameter, self._least_scales())
        return quantized

    def _least_scales(self) -> Tensor | None:
        """The scales of the weights under which the bias would not fit its int32 [output channels].

        Weights near zero under a bias that is not, as a gate starts, have no scale of their own to speak of.
        """
        bias = self._parameters["bias"]
        if bias is None or self.fed_by is None:
            return None
        return bias.detach().abs() / (self.fed_by[0].scale * LARGEST_BIAS)

    def settle(self) -> None:
        """The weight's scales as weight, bias and the input's scale are now."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        self.weight_quantizer.settle(parameter, self._least_scales())

    @property
    def bias(self) -> Tensor | None:
        parameter = self._parameters["bias"]
        if parameter is None or not self.weight_quantizer.on:
            return parameter
        if self.fed_by is not None:
            unit = self.fed_by[0].scale * self.weight_quantizer.scale
        elif self.latent_of is not None and not self.training:
            unit = self.weight_quantizer.scale
        else:
            return parameter
        exact = parameter.detach()
        return parameter + ((exact / unit).round() * unit - exact)

    @torch.no_grad()
    def freeze_bias(self) -> None:
        """Makes the bias what it is read as."""
        parameter, bias = self._parameters["bias"], self.bias
        if parameter is not None and bias is not None:
            parameter.copy_(bias)
        self.fed_by = None


WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


def quantize_layer(layer: nn.Module, switches: Switches, per_channel: bool) -> None:
    """Gives a convolution or linear layer fake-quantized weights, in place; its state-dict keys stay."""
    axis = int(getattr(layer, "transposed", False))  # a transposed convolution's weight is [in, out, ...]
    channels = layer.get_parameter("weight").shape[axis]
    layer.__class__ = type(type(layer).__name__, (QuantizedLayer, type(layer)), {})
    layer.add_module("weight_quantizer", WeightQuantizer(switches, channels, axis if per_channel else None))


def quantize_around(layer: QuantizedLayer, switches: Switches, observer: str) -> None:
    """Quantizes what goes into a layer and what comes out, for a layer inside a block that cannot be traced."""
    layer.input_quantizer = ActivationQuantizer(switches, observer)
    layer.output_quantizer = ActivationQuantizer(switches, observer)
    layer.fed_by = (layer.input_quantizer,)
    layer.register_forward_pre_hook(_quantize_input)
    layer.register_forward_hook(_quantize_output)


def _quantize_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("input_quantizer")(inputs[0]), *inputs[1:])


def _quantize_output(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return layer.get_submodule("output_quantizer")(output)
