"""Convolutions and linear layers with fake-quantized weights; in evaluation they use an int8 runtime's arithmetic.

A runtime multiplies and adds integers, scales the sum by one float32 number and rounds it half to even. The same
computation on real values in float32 has a small error. It decides one rounding in 10^5 or, where a flat part of a
picture lies halfway between two steps, thousands at once; and a value that is one step off changes every sum that
contains it. Sums of integers below 2^24 are exact in float32, and with TF32 too. Evaluation therefore gives the
integers of ONNX Runtime on every device. If the input has 16 bits, the sums are exact in float64: they are a chip's,
and ONNX Runtime's, which computes such a layer in float32, up to its rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.modules import mix_in
from codec.quantization.observers import Observer
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring, round_ste
from codec.quantization.splits import middle, part, shared_and_more

FACTORS = ("input_factor", "output_factor")
"""Names of the buffers that scale a quantized layer's channels."""

LARGEST_BIAS = {8: 2.0**22, 16: 2.0**30}
"""Largest bias in its unit, input scale times weight scale, by the bits of the input: float32, or float64, adds it to a
sum without rounding, and it fits an int32."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)

LINEAR = [layer.forward for layer in WEIGHTED]
"""Forwards that are linear in input and weight, plus the bias. The forward of a derived class may compute anything; if
it is linear too, the class says so with `is_linear = True`."""


class QuantizedLayer(nn.Module):
    """`quantize_layer` mixes this class in front of the class of a convolution or a linear layer.

    The layer's own forward then reads fake-quantized weights, and its bias as a multiple of the unit of an int32
    accumulator: input scale times weight scale. The parameters and their names do not change.

    Attributes:
        is_linear: whether its forward is one of `LINEAR`.
        input_factor, output_factor: buffers [channels], or [1] where channels cannot be scaled: what equalization and
            the levels of y multiply the weight by, and the bias by the second one. The parameters stay those of the
            float codec. Multiplied themselves, some would become 100 times smaller and others 60 times larger. A step
            of Adam, which has the size of the learning rate whatever the weight, would then ruin the ones and hardly
            train the others.
        is_folded: the parameters hold the scales (an exporter's copy).
        wiring: the quantizers around it. For the first layer of g_s it also holds the entropy model of y: if its
            symbols fit 8 bits, an int8 runtime gives this layer the symbols, and constant channels that add medians.
    """

    ONES_IN_EARLIER_CHECKPOINTS = FACTORS
    weight_quantizer: WeightQuantizer
    is_linear: bool
    wiring: Wiring
    input_factor: Tensor
    output_factor: Tensor
    is_folded: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_integers:
            y: Tensor = super().forward(x)
            return y
        if self.latent is not None:
            accumulator: Tensor = super().forward(round_ste(x - self._medians())) + self._accumulated_medians(x)
        else:
            integers = self.wiring.inputs[0].integers(x)
            if (splits := self.weight_quantizer.input_splits) is not None:
                splits = splits.view(-1, *[1] * (x.ndim - 2))
                integers = torch.cat([integers, part(integers, middle(splits), splits)], 1)
            accumulator = super().forward(integers.to(self._of_sums))
        unit = self._unit()
        assert unit is not None
        unit = unit.view(-1, *[1] * (self.float_weight.ndim - 2))
        output = self.wiring.output
        return (accumulator.mul_(unit) if output is None else output.of_sums(accumulator, unit)).to(x.dtype)

    @property
    def in_integers(self) -> bool:
        """Whether it computes with a runtime's integers: in evaluation, if those of its input are known."""
        known = bool(self.wiring.inputs) or self.latent is not None
        return known and self.is_linear and self.weight_quantizer.on and not self.training

    @property
    def is_beside_16_bits(self) -> bool:
        """Whether a tensor before or after it has 16 bits."""
        around = (*self.wiring.inputs, self.wiring.output)
        return any(each is not None and each.bits == 16 for each in around)

    @property
    def latent(self) -> nn.Module | None:
        """The entropy model of y, if an int8 runtime gives this layer its symbols; else None."""
        model = self.wiring.y_model
        return model if model is not None and model.symbol_limits is not None else None

    @property
    def weight(self) -> Tensor:
        """The fake-quantized weight; its integers if `in_integers`."""
        quantized: Tensor = self.weight_quantizer(self.float_weight, self._smallest_scales())
        if not self.in_integers:
            return quantized
        splits = self.weight_quantizer.splits_along(quantized)
        integers = self.weight_quantizer.integers(quantized)
        if splits is not None:
            integers = torch.cat(shared_and_more(integers, splits), self.weight_quantizer.split_axis)
        return integers.to(self._of_sums)

    @property
    def bias(self) -> Tensor | None:
        """The bias as a multiple of the accumulator's unit; the multiple alone if `in_integers`."""
        parameter, unit = self.float_bias, self._unit()
        if parameter is None or unit is None or not self.weight_quantizer.on:
            return parameter
        exact = parameter / unit
        multiple = exact + (exact.round() - exact).detach()
        if not self.in_integers:
            return multiple * unit
        if self.weight_quantizer.output_splits is not None:
            multiple = torch.cat([multiple, torch.zeros_like(multiple)])
        return multiple.to(self._of_sums)

    @property
    def float_weight(self) -> Tensor:
        """The weight in float, with the scales of the channels."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter if self.is_folded else parameter * self._scales(parameter)

    @property
    def float_bias(self) -> Tensor | None:
        """The bias in float, with the scales of the channels; None if the layer has none."""
        parameter = self._parameters["bias"]
        return parameter if parameter is None or self.is_folded else parameter * self.output_factor

    @torch.no_grad()
    def set_float_weight(self, weight: Tensor) -> None:
        """Changes the parameter such that `float_weight` is this one, to rounding."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        parameter.copy_(weight if self.is_folded else weight / self._scales(parameter))

    def _scales(self, parameter: Tensor) -> Tensor:
        """What the weight is multiplied by, in a shape that broadcasts over it."""
        transposed, one_group = getattr(self, "transposed", False), getattr(self, "groups", 1) == 1
        of_output, of_input = (1, 0) if transposed and one_group else (0, 1) if one_group else (0, 0)
        by_input = self.input_factor.view(-1, *[1] * (parameter.ndim - 1)).transpose(0, of_input)
        return by_input * self.output_factor.view(-1, *[1] * (parameter.ndim - 1)).transpose(0, of_output)

    @property
    def _of_sums(self) -> torch.dtype:
        """The type in which sums of integers are exact."""
        wide = bool(self.wiring.inputs) and self.wiring.inputs[0].bits == 16
        return torch.float64 if wide else torch.float32

    def _unit(self) -> Tensor | None:
        """The unit of the int32 accumulator, [output channels] or [1]; None if the input's scale is not known."""
        if self.wiring.inputs:
            return self.wiring.inputs[0].scale * self.weight_quantizer.scale
        return self.weight_quantizer.scale if self.latent is not None and not self.training else None

    def _smallest_scales(self) -> Tensor | None:
        """The weight scales below which the bias would exceed `LARGEST_BIAS` units [output channels].

        Weights near zero with a larger bias, as a gate has at its start, would otherwise get a scale near zero.
        """
        bias = self.float_bias
        if bias is None or not self.wiring.inputs:
            return None
        source = self.wiring.inputs[0]
        return bias.detach().abs() / (source.scale * LARGEST_BIAS[source.bits])

    def update_weight_scale(self) -> None:
        """Computes the weight's scales from weight, bias and input scale as they are now."""
        self.weight_quantizer.update_scale(self.float_weight, self._smallest_scales())

    def medians_through_taps(self) -> Tensor:
        """What the medians add to the output through each tap, as multiples of the weight's scale [Cout, k, k].

        It is the sum over input channels of median times weight, for a tap that lies on the picture. A symbol's scale
        is 1, so that the unit is not small next to the next layer's scale, and its rounding matters.
        """
        integers = self.weight_quantizer.integers(self.weight_quantizer(self.float_weight))
        medians = self._medians().flatten().double()
        return torch.einsum("m,mokl->okl", medians, integers.double()).round()

    def _accumulated_medians(self, x: Tensor) -> Tensor:
        """What the medians add to the accumulator at each position; fewer taps lie on the picture at its border."""
        assert isinstance(self, nn.ConvTranspose2d)
        assert isinstance(self.padding, tuple)
        ones, taps = torch.ones_like(x[:, :1], dtype=torch.float64), self.medians_through_taps()[None]
        added = F.conv_transpose2d(ones, taps, None, self.stride, self.padding, self.output_padding)
        return added.to(x.dtype)

    def _medians(self) -> Tensor:
        assert self.latent is not None
        medians: Tensor = self.latent.medians()  # type: ignore[operator]
        return medians

    @torch.no_grad()
    def compute_in_float(self) -> None:
        """Makes it an ordinary layer with a fake-quantized weight and a rounded bias, which an exporter can trace."""
        self.fold()
        parameter, unit = self.float_bias, self._unit()
        if parameter is not None and unit is not None:
            parameter.copy_((parameter / unit).round() * unit)
        self.wiring = Wiring()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiplies the parameters by the scales, for good."""
        values = {"weight": self.float_weight, "bias": self.float_bias}
        self.is_folded = True
        for name, value in values.items():
            parameter = self._parameters[name]  # the attribute may be its fake-quantized value
            if parameter is not None and value is not None:
                parameter.copy_(value)


def quantize_layer(layer: nn.Module, switches: Switches, per_channel: bool) -> None:
    """Gives a convolution or a linear layer fake-quantized weights, in place; its state-dict keys do not change."""
    axis = int(getattr(layer, "transposed", False))  # a transposed convolution's weight is [in, out, ...]
    channels = layer.get_parameter("weight").shape[axis]
    is_linear = type(layer).forward in LINEAR or getattr(layer, "is_linear", False)
    mix_in(layer, QuantizedLayer, is_linear=is_linear)
    assert isinstance(layer, QuantizedLayer)
    layer.wiring = Wiring()
    layer.add_module("weight_quantizer", WeightQuantizer(switches, channels, axis if per_channel else None))
    for name, count in zip(FACTORS, _scaled_channels(layer), strict=True):
        layer.register_buffer(name, torch.ones(count))


def can_be_scaled(layer: nn.Module) -> bool:
    """Whether the channels of a layer have factors: those of a convolution that has one group or is depthwise."""
    if not isinstance(layer, CONVOLUTIONS):
        return False
    depthwise: bool = layer.groups == layer.in_channels == layer.out_channels
    return layer.groups == 1 or depthwise


def _scaled_channels(layer: nn.Module) -> tuple[int, int]:
    """How many factors a layer has for its inputs and its outputs."""
    if isinstance(layer, CONVOLUTIONS) and can_be_scaled(layer):
        return layer.in_channels, layer.out_channels
    return 1, 1


def quantize_around(layer: QuantizedLayer, switches: Switches, observer: Observer) -> None:
    """Quantizes the input and the output of a layer inside a block that cannot be traced."""
    layer.input_quantizer = ActivationQuantizer(switches, observer)
    layer.output_quantizer = ActivationQuantizer(switches, observer)
    layer.wiring = Wiring((layer.input_quantizer,), layer.output_quantizer)
    layer.register_forward_pre_hook(_quantize_input)
    layer.register_forward_hook(_quantize_output)


def _quantize_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("input_quantizer")(inputs[0]), *inputs[1:])


def _quantize_output(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return layer.get_submodule("output_quantizer")(output)
