"""h_s in integers: made from the float h_s without data, and computed by torch for batches on any device."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from codec.bitstream.integer import (
    LINEAR,
    MEAN_BITS,
    MOST_ACTIVATION,
    MOST_MEAN,
    MOST_MULTIPLIER,
    MOST_SCALE,
    MOST_SHIFT,
    MOST_SYMBOL,
    SCALE_BITS,
    IntegerNetwork,
    Layer,
    taps,
)
from codec.network.bottleneck import Bottleneck

ACTIVATION_BITS = 10
"""Of the values between the layers."""
MARGIN = 2.0
"""Between the largest activation that the sampled z give and the largest that does not saturate."""
INPUT_BITS = 12
"""Of z with its fractional bits, as far as its tables reach."""
_MOST_FRACTION = 4
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
    """
    medians = bottleneck.medians().double()
    reach = max(map(abs, bottleneck.symbol_range())) + float(medians.abs().max()) + 1
    fraction = max(0, min(_MOST_FRACTION, math.floor(INPUT_BITS - math.log2(reach))))
    most, step = min(MOST_ACTIVATION - 1, math.ceil(reach * 2**fraction)), 2.0**-fraction
    activations = [each.to(medians.device) + medians for each in _sampled(bottleneck)]
    stages, layers = list(_stages(h_s)), []
    for number, (convolution, activation, slope) in enumerate(stages):
        activations = [activation(convolution(each.float())) for each in activations]
        last = number == len(stages) - 1
        if last:
            units = torch.full_like(convolution.bias, 2.0**-SCALE_BITS)
            units[len(units) // 2 if has_means else len(units) :] = 2.0**-MEAN_BITS
        else:
            largest = MARGIN * max(float(each.abs().max()) for each in activations)
            units = torch.full_like(convolution.bias, max(largest, 1e-6) / ((1 << ACTIVATION_BITS) - 1))
        limit = MOST_MEAN if last else (1 << ACTIVATION_BITS) - 1
        layers.append(_quantized(convolution, slope, step, units.double(), limit))
        step = float(units[0])
    scales = scale_table[:-1].double().cpu().numpy()
    thresholds = np.floor(scales * 2**SCALE_BITS).astype(np.int32) + 1  # a scale above s belongs to the next row
    fixed = torch.round(medians * 2**fraction).flatten().int().cpu().numpy()
    return IntegerNetwork(tuple(layers), fixed, fraction, most, thresholds, has_means)


def _stages(h_s: nn.Sequential) -> Iterator[tuple[nn.Conv2d | nn.ConvTranspose2d, nn.Module, int]]:
    """The convolutions with their activations, and the slopes of these for negative values in units of 2^-16."""
    modules = list(h_s)
    while modules:
        convolution = modules.pop(0)
        assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
        if not modules:
            yield convolution, nn.Identity(), LINEAR
            return
        activation = modules.pop(0)
        assert isinstance(activation, nn.ReLU | nn.LeakyReLU)
        yield convolution, activation, round(getattr(activation, "negative_slope", 0) * LINEAR)


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


def _quantized(convolution: nn.Conv2d | nn.ConvTranspose2d, slope: int, step: float, units: Tensor, most: int) -> Layer:
    """A layer in integers.

    Args:
        step: the value of 1 in its input.
        units: the value of 1 in each channel of its output [C_out].
    """
    weight = convolution.weight.double()
    if isinstance(convolution, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    largest = weight.abs().amax((1, 2, 3)).clamp_min(1e-12)
    sums = step * largest / 127  # the value of 1 in a sum of each channel
    rounded = torch.round(weight * (127 / largest)[:, None, None, None])
    bias = torch.round(convolution.bias.double() / sums).clamp(-(2.0**30), 2.0**30)
    ratio = (sums / units).cpu().numpy()
    shift = np.clip(15 - np.ceil(np.log2(ratio)), 1, MOST_SHIFT).astype(np.int32)
    multiplier = np.clip(np.rint(np.ldexp(ratio, shift)), 0, MOST_MULTIPLIER).astype(np.int32)
    return Layer(rounded.to(torch.int8).cpu().numpy(), bias.int().cpu().numpy(), multiplier, shift, slope, most)


class TorchIntegerNetwork(nn.Module):
    """`IntegerNetwork` for batches: the same integers, in float64 on any device, so that any order of sums is exact.

    Matrix products, one for each tap, and no convolution: a library may choose an algorithm for it that rounds (FFT).

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
        scales = np.arange(MOST_SCALE + 1)
        indexes = np.searchsorted(network.thresholds, scales, side="right")
        self.register_buffer("indexes", torch.from_numpy(indexes), persistent=False)
        self.register_buffer("medians", torch.from_numpy(network.medians).double()[:, None, None], persistent=False)
        # Tensors, not numbers: they differ from one table to the next, and would be compiled into the graph.
        self.register_buffer("unit", torch.tensor(2.0**network.fraction, dtype=torch.float64), persistent=False)
        self.register_buffer("most", torch.tensor(network.most, dtype=torch.float64), persistent=False)
        self.layers = nn.ModuleList(_TorchLayer(layer) for layer in network.layers)

    def forward(self, z: Tensor, height: int, width: int) -> tuple[Tensor, Tensor | None]:
        """Table indexes and means for y of this size.

        Args:
            z: symbols [B, N, ceil(height / 4), ceil(width / 4)], of any type.

        Returns:
            Indexes int64 [B, M, height, width], and means float64 in units of 2^-6, or None.
        """
        x = z.double().clamp(-MOST_SYMBOL, MOST_SYMBOL) * self.unit + self.medians
        x = torch.minimum(torch.maximum(x, -self.most), self.most)
        for layer in self.layers:
            x = layer(x)
        x = x[..., :height, :width]
        indexes = self.indexes[x[:, : self.channels].clamp(0, MOST_SCALE).long()]
        return indexes, x[:, self.channels :] if self.has_means else None


class _TorchLayer(nn.Module):
    """A `Layer` for batches."""

    factor: Tensor
    offset: Tensor
    negative_factor: Tensor
    negative_offset: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.slope, self.least, self.most = layer.slope, layer.least, layer.most
        (factor, offset), (negative_factor, negative_offset) = layer.factors
        self._keep(factor=factor, offset=offset, negative_factor=negative_factor, negative_offset=negative_offset)
        self.offsets = [list(weights) for weights in taps(layer).values()]
        for number, weights in enumerate(taps(layer).values()):
            self._keep(**{f"weight{number}": np.stack(list(weights.values())).astype(np.float64)})

    def _keep(self, **arrays: NDArray[np.float64]) -> None:
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Integers [B, C_in, h, w] to integers [B, C_out, h, w], or twice as high and wide."""
        height, width = x.shape[-2:]
        padded = functional.pad(x, (1, 1, 1, 1))
        found = []
        for number, offsets in enumerate(self.offsets):
            weights: Tensor = getattr(self, f"weight{number}")
            pieces = [padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width].flatten(2) for dy, dx in offsets]
            sums = weights[0] @ pieces[0]
            for weight, piece in zip(weights[1:], pieces[1:], strict=True):
                sums = sums + weight @ piece
            found.append(self._rescaled(sums))
        outputs = torch.stack(found, 2).flatten(1, 2).unflatten(2, (height, width))
        return functional.pixel_shuffle(outputs, 2) if len(found) > 1 else outputs

    def _rescaled(self, sums: Tensor) -> Tensor:
        scaled = sums * self.factor + self.offset
        if 0 < self.slope < LINEAR:
            scaled = torch.maximum(scaled, sums * self.negative_factor + self.negative_offset)
        return scaled.floor().clamp(self.least, self.most)
