"""The integer h_s: made from the float h_s without data, and computed by torch for batches on any device."""

import math
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.bitstream.gains import GAIN_BITS
from codec.bitstream.integer import (
    LINEAR,
    MEAN_BITS,
    MOST_ACTIVATION,
    MOST_MEAN,
    MOST_MEDIAN,
    MOST_MULTIPLIER,
    MOST_SCALE,
    MOST_SHIFT,
    MOST_SYMBOL,
    SCALE_BITS,
    IntegerNetwork,
    Layer,
    kernels,
)
from codec.errors import InputError
from codec.network.bottleneck import Bottleneck
from codec.network.gains import CodedGains

ACTIVATION_BITS = 10
"""Of the values between the layers: 8 bits move a mean-scale codec's bits by 1 %, 10 bits by 0.02 %."""
_MOST_ACTIVATION = (1 << ACTIVATION_BITS) - 1
MARGIN = 2.0
"""Between the largest activation that the sampled z give and the largest that does not saturate."""
INPUT_BITS = 12
"""Of z with its fractional bits, as far as its tables reach. The medians of many channels that hardly change add up:
rounded to 1/16 they moved the bits by 0.2 %, to 1/128 by 0.02 %."""
_MOST_FRACTION = 8
_MOST_BIAS = 1 << 30
_LEAST_RANGE = 1e-6
_DRAWN = (2, 8)
"""Sampled pictures of z with independent symbols, and their side."""
_FLAT = (48, 3)
"""Sampled pictures of z with one symbol a channel, and their side: they give the largest activations."""


@torch.no_grad()
def integer_h_s(h_s: nn.Sequential, bottleneck: Bottleneck, scale_table: Tensor, has_means: bool) -> IntegerNetwork:
    """Quantizes h_s after training: int8 weights with a scale per output channel, activations of 10 bits.

    The ranges of the activations come from symbols of z that are drawn, with a fixed seed, from the bottleneck's own
    tables: no pictures are needed.

    Args:
        h_s: (transposed) convolutions, each followed by ReLU or LeakyReLU, the last one perhaps by nothing.
        bottleneck: of z, with tables.
        scale_table: the scales of the Gaussian's tables [rows].
        has_means: the second half of h_s's outputs are means.

    Raises:
        InputError: h_s overflows.
    """
    medians = bottleneck.medians().double()
    reach = max(map(abs, bottleneck.symbol_range())) + float(medians.abs().max()) + 1
    fraction = max(0, min(_MOST_FRACTION, math.floor(INPUT_BITS - math.log2(reach))))
    step = 2.0**-fraction
    activations = [(each.to(medians.device) + medians).float() for each in _sampled(bottleneck)]
    stages, layers = _stages(h_s), []
    for stage in stages[:-1]:
        activations = [stage.activation(stage.convolution(each)) for each in activations]
        if not all(each.isfinite().all() for each in activations):
            raise InputError("h_s gives NaN or Inf for symbols of z; its training has diverged, use another checkpoint")
        largest = max(float(each.abs().max()) for each in activations)
        unit = max(MARGIN * largest, _LEAST_RANGE) / _MOST_ACTIVATION
        layers.append(_quantized(stage, step, torch.full_like(stage.bias, unit), _MOST_ACTIVATION))
        step = unit
    units = torch.full_like(stages[-1].bias, 2.0**-SCALE_BITS)
    if has_means:
        units[len(units) // 2 :] = 2.0**-MEAN_BITS
    layers.append(_quantized(stages[-1], step, units, MOST_MEAN))
    scales = scale_table[:-1].double().cpu().numpy()
    thresholds = np.floor(scales * 2**SCALE_BITS).astype(np.int32) + 1  # a scale above s belongs to the next row
    fixed = torch.round(medians / 2.0**-fraction).clamp(-MOST_MEDIAN, MOST_MEDIAN).flatten().int().cpu().numpy()
    most = min(math.ceil(reach * 2**fraction), MOST_ACTIVATION, layers[0].most_input())
    return IntegerNetwork(tuple(layers), fixed, fraction, most, thresholds, has_means)


class _Stage(NamedTuple):
    """A convolution with its bias and activation, and the activation's slope for negative values in units of 2^-16."""

    convolution: nn.Conv2d | nn.ConvTranspose2d
    bias: Tensor
    activation: nn.Module
    slope: int

    def weight(self) -> Tensor:
        """The weights [C_out, C_in, k, k]."""
        weight = self.convolution.weight.double()
        return weight.transpose(0, 1) if isinstance(self.convolution, nn.ConvTranspose2d) else weight


def _stages(h_s: nn.Sequential) -> list[_Stage]:
    stages, modules = [], list(h_s)
    for convolution, activation in zip_longest(modules[::2], modules[1::2], fillvalue=nn.Identity()):
        assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
        assert isinstance(activation, nn.ReLU | nn.LeakyReLU | nn.Identity)
        assert convolution.bias is not None
        slope = {nn.ReLU: 0.0, nn.Identity: 1.0}.get(type(activation), getattr(activation, "negative_slope", 0.0))
        stages.append(_Stage(convolution, convolution.bias, activation, round(slope * LINEAR)))
    return stages


def _sampled(bottleneck: Bottleneck) -> list[Tensor]:
    """Symbols of z as the tables distribute them: two tensors [B, N, h, w]."""
    random = np.random.default_rng(0)
    tables = (getattr(bottleneck, name).cpu().numpy() for name in ("_quantized_cdf", "_cdf_length", "_offset"))
    count = _DRAWN[0] * _DRAWN[1] ** 2 + _FLAT[0]
    drawn = [
        np.searchsorted(cdf[: n - 1], random.integers(65536, size=count), side="right") - 1 + first
        for cdf, n, first in zip(*tables, strict=True)
    ]
    symbols = torch.from_numpy(np.stack(drawn)).double()
    apart, flat = symbols.split((count - _FLAT[0], _FLAT[0]), 1)
    apart = apart.view(-1, _DRAWN[0], _DRAWN[1], _DRAWN[1]).transpose(0, 1)
    return [apart, flat.T[:, :, None, None].expand(-1, -1, _FLAT[1], _FLAT[1])]


def _quantized(stage: _Stage, step: float, units: Tensor, most: int) -> Layer:
    """A layer in integers.

    Args:
        step: the value of 1 in its input.
        units: the value of 1 in each channel of its output [C_out].
        most: the largest output.
    """
    weight = stage.weight()
    largest = weight.abs().amax((1, 2, 3)).clamp_min(1e-12)
    sums = step * largest / 127  # the value of 1 in each channel's sums
    ratio = (sums / units.double()).cpu().numpy()
    shift = np.clip(15 - np.ceil(np.log2(ratio)), 1, MOST_SHIFT).astype(np.int32)
    return Layer(
        weight=torch.round(weight * (127 / largest)[:, None, None, None]).to(torch.int8).cpu().numpy(),
        bias=torch.round(stage.bias.double() / sums).clamp(-_MOST_BIAS, _MOST_BIAS).int().cpu().numpy(),
        multiplier=np.clip(np.rint(np.ldexp(ratio, shift)), 0, MOST_MULTIPLIER).astype(np.int32),
        shift=shift,
        slope=stage.slope,
        most=most,
    )


class TorchIntegerNetwork(nn.Module):
    """`IntegerNetwork` for batches: the same integers, in float64 on any device, so that any order of sums is exact.

    Matrix products and no convolution: a library may choose an algorithm for it that rounds (FFT). They copy the 3x3
    neighbourhoods, so this is for crops and small pictures; `HyperCoder.context` takes pictures of any size.

    Args:
        network: the network.
    """

    indexes: Tensor
    medians: Tensor
    unit: Tensor
    most: Tensor

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__()
        self.network = network
        self.channels, self.has_means = network.channels, network.has_means
        self.register_buffer("indexes", torch.from_numpy(network.indexes).long(), persistent=False)
        self.register_buffer("medians", torch.from_numpy(network.medians).double()[:, None, None], persistent=False)
        # Tensors, not numbers: they differ from one table to the next, and would be compiled into the graph.
        self.register_buffer("unit", torch.tensor(2.0**network.fraction, dtype=torch.float64), persistent=False)
        self.register_buffer("most", torch.tensor(network.most, dtype=torch.float64), persistent=False)
        self.layers = nn.ModuleList(_TorchLayer(layer) for layer in network.layers)

    def forward(
        self, z: Tensor, height: int, width: int, of_z: CodedGains | None = None, of_y: CodedGains | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Table indexes and means for y of this size.

        Args:
            z: symbols [B, N, ceil(height / 4), ceil(width / 4)], of any type.
            of_z, of_y: the gains with which z and y are rounded; None: 1.

        Returns:
            Indexes int64 [B, M, height, width], and means float64 in units of 2^-6, or None.
        """
        x = z.double().clamp(-MOST_SYMBOL, MOST_SYMBOL) * self.unit
        if of_z is not None:
            x = torch.floor(x * of_z.inverse * 2.0**-GAIN_BITS + 0.5)
        x = x + self.medians
        x = torch.minimum(torch.maximum(x, -self.most), self.most)
        for layer in self.layers:
            x = layer(x)
        x = x[..., :height, :width]
        scales = x[:, : self.channels].clamp(0, MOST_SCALE)
        if of_y is not None:
            scales = torch.floor(scales * of_y.fixed * 2.0**-GAIN_BITS + 0.5)
        indexes = self.indexes[scales.nan_to_num().long()]  # NaN is no integer; its likelihood stays NaN
        return indexes, x[:, self.channels :] if self.has_means else None


class _TorchLayer(nn.Module):
    """A `Layer` for batches, as one matrix product of its 3x3 neighbourhoods."""

    weight: Tensor
    factor: Tensor
    offset: Tensor
    negative_factor: Tensor
    negative_offset: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.slope, self.least, self.most = layer.slope, layer.least, layer.most
        self.upscale = 2 if layer.transposed else 1
        weight = torch.from_numpy(kernels(layer).astype(np.float64)).flatten(0, 1).transpose(0, 1)
        self.register_buffer("weight", weight.flatten(0, 1).flatten(1), persistent=False)
        names = ("factor", "offset", "negative_factor", "negative_offset")
        for name, array in zip(names, (each for pair in layer.factors for each in pair), strict=True):
            repeated = torch.from_numpy(array).repeat_interleave(self.upscale**2, 0)
            self.register_buffer(name, repeated, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Integers [B, C_in, h, w] to integers [B, C_out, h, w], or twice as high and wide."""
        sums = self.weight @ functional.unfold(x, 3, padding=1)
        scaled = sums * self.factor + self.offset
        if 0 < self.slope < LINEAR:
            scaled = torch.maximum(scaled, sums * self.negative_factor + self.negative_offset)
        outputs = scaled.floor().clamp(self.least, self.most).unflatten(2, x.shape[-2:])
        return functional.pixel_shuffle(outputs, self.upscale)
