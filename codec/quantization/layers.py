"""Convolutions and linear layers with fake-quantized weights, which in evaluation count as an int8 runtime does.

A runtime multiplies and adds integers, scales the sum by one float32 number and rounds it half to even. Real values in
float32 miss that by a little, which decides one rounding in 10^5 or, where a flat part of a picture lies at a half,
thousands at once; and a value that is one step off moves every sum that it is a part of. Integers in float32 have no
such error below 2^24, nor in TF32, so that evaluation gives ONNX Runtime's own integers on every device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.modules import mix_in
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring, whole

LARGEST_BIAS = 2.0**22
"""In its unit, input scale times weight scale: float32 holds it, and what is added to it, without rounding."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)

LINEAR = [layer.forward for layer in WEIGHTED]
"""Forwards that are linear in input and weight, plus the bias. A derived class may compute anything; it says with
`is_linear = True` that its forward is linear too."""


class QuantizedLayer(nn.Module):
    """Mixed in front of the class of a convolution or a linear layer by `quantize_layer`.

    Whatever its forward does, it reads fake-quantized weights, and its bias in the unit of an int32 accumulator: the
    input's scale times the weight's. The parameters, their names and their gradients stay.

    Attributes:
        is_linear: its forward is one of `LINEAR`.
        wiring: the quantizers around it. The first layer of g_s has the bottleneck there: where its symbols fit 8 bits,
            an int8 runtime gives this layer the symbols, and channels of constants that carry the medians.
    """

    weight_quantizer: WeightQuantizer
    is_linear: bool
    wiring: Wiring

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_integers:
            y: Tensor = super().forward(x)
            return y
        if self.latent is not None:
            count: Tensor = super().forward(whole(x - self._medians())) + self._count_of_medians(x)
        else:
            count = super().forward(self.wiring.inputs[0].counts(x))
        unit = self._unit()
        assert unit is not None
        unit = unit.view(-1, *[1] * (self.float_weight.ndim - 2))
        if self.wiring.output is None:
            return count.mul_(unit)
        step = self.wiring.output.scale
        return whole(count.mul_(unit / step)).mul_(step)

    @property
    def in_integers(self) -> bool:
        """Whether it computes in a runtime's integers: in evaluation, where those of its input are known."""
        known = bool(self.wiring.inputs) or self.latent is not None
        return known and self.is_linear and self.weight_quantizer.on and not self.training

    @property
    def latent(self) -> nn.Module | None:
        """The bottleneck, where an int8 runtime gives this layer its symbols; None elsewhere."""
        bottleneck = self.wiring.bottleneck
        return bottleneck if bottleneck is not None and bottleneck.symbol_limits is not None else None

    @property
    def weight(self) -> Tensor:
        """The fake-quantized weight, or its integers."""
        quantized: Tensor = self.weight_quantizer(self.float_weight, self._least_scales())
        return self.weight_quantizer.counts(quantized) if self.in_integers else quantized

    @property
    def bias(self) -> Tensor | None:
        """The bias as a multiple of the accumulator's unit, or how many units it is."""
        parameter, unit = self._parameters["bias"], self._unit()
        if parameter is None or unit is None or not self.weight_quantizer.on:
            return parameter
        exact = parameter / unit
        count = exact + (exact.round() - exact).detach()
        return count if self.in_integers else count * unit

    @property
    def float_weight(self) -> Tensor:
        """The weight as it trains."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter

    def _unit(self) -> Tensor | None:
        """Of an int32 accumulator [output channels], or [1]; None where the input's scale is not known."""
        if self.wiring.inputs:
            return self.wiring.inputs[0].scale * self.weight_quantizer.scale
        return self.weight_quantizer.scale if self.latent is not None and not self.training else None

    def _least_scales(self) -> Tensor | None:
        """The scales of the weights under which the bias would be more than `LARGEST_BIAS` units [output channels].

        Weights near zero under a bias that is not, as a gate starts, have no scale of their own to speak of.
        """
        bias = self._parameters["bias"]
        if bias is None or not self.wiring.inputs:
            return None
        return bias.detach().abs() / (self.wiring.inputs[0].scale * LARGEST_BIAS)

    def settle(self) -> None:
        """The weight's scales as weight, bias and the input's scale are now."""
        self.weight_quantizer.settle(self.float_weight, self._least_scales())

    def count_of_medians(self) -> Tensor:
        """What the medians add to the output through each tap, in whole units of the weights' scale [Cout, k, k].

        It is the sum of median times weight, for every tap that lies on the picture. A symbol's scale is 1, so that a
        unit is no small thing beside the next layer's scale, and its rounding shows.
        """
        integers = self.weight_quantizer.counts(self.weight_quantizer(self.float_weight))
        medians = self._medians().flatten().double()
        return torch.einsum("m,mokl->okl", medians, integers.double()).round()

    def _count_of_medians(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.ConvTranspose2d)
        assert isinstance(self.padding, tuple)
        ones, taps = torch.ones_like(x[:, :1], dtype=torch.float64), self.count_of_medians()[None]
        count = F.conv_transpose2d(ones, taps, None, self.stride, self.padding, self.output_padding)
        return count.to(x.dtype)

    def _medians(self) -> Tensor:
        assert self.latent is not None
        medians: Tensor = self.latent.medians()  # type: ignore[operator]
        return medians

    @torch.no_grad()
    def compute_in_float(self) -> None:
        """Makes it an ordinary layer of a fake-quantized weight and a rounded bias, which an exporter can trace."""
        parameter, unit = self._parameters["bias"], self._unit()
        if parameter is not None and unit is not None:
            parameter.copy_((parameter / unit).round() * unit)
        self.wiring = Wiring()


def quantize_layer(layer: nn.Module, switches: Switches, per_channel: bool) -> None:
    """Gives a convolution or linear layer fake-quantized weights, in place; its state-dict keys stay."""
    axis = int(getattr(layer, "transposed", False))  # a transposed convolution's weight is [in, out, ...]
    channels = layer.get_parameter("weight").shape[axis]
    is_linear = type(layer).forward in LINEAR or getattr(layer, "is_linear", False)
    mix_in(layer, QuantizedLayer, is_linear=is_linear)
    assert isinstance(layer, QuantizedLayer)
    layer.wiring = Wiring()
    layer.add_module("weight_quantizer", WeightQuantizer(switches, channels, axis if per_channel else None))


def quantize_around(layer: QuantizedLayer, switches: Switches, observer: str) -> None:
    """Quantizes what goes into a layer and what comes out, for a layer inside a block that cannot be traced."""
    layer.input_quantizer = ActivationQuantizer(switches, observer)
    layer.output_quantizer = ActivationQuantizer(switches, observer)
    layer.wiring = Wiring((layer.input_quantizer,), layer.output_quantizer)
    layer.register_forward_pre_hook(_quantize_input)
    layer.register_forward_hook(_quantize_output)


def _quantize_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("input_quantizer")(inputs[0]), *inputs[1:])


def _quantize_output(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return layer.get_submodule("output_quantizer")(output)
