"""The synthesis h_s of a hyperprior in integers: the same results on every machine. Needs no torch.

A layer is a convolution of int8 weights with integer activations, summed in 32 bits, and then

    output = clamp((sum * multiplier + 2^(shift - 1)) >> shift)

with a multiplier and a shift for each output channel (a dyadic rescaling, rounded half up). Every number is an integer,
so a C program with int8, int32 and int64 computes the same; no result depends on the order of a sum.

Here the sums are matrix products of floats (`codec.bitstream.winograd`), and float64, exact up to 2^53, rescales them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.gains import GAIN_BITS, Scaling
from codec.bitstream.winograd import Winograd
from codec.errors import InputError

Span = tuple[int, int]
"""First and end row, or column."""

SCALE_BITS = 8
"""Fractional bits of a scale: the Gaussian's smallest scale, 0.11, is 28 of these units."""
MEAN_BITS = 6
"""Fractional bits of a mean: rounded to 1/64, it costs about 0.001 % of the bits."""
LINEAR = 1 << 16
"""The slope of a layer without activation, in units of 2^-16."""

MOST_MEAN = (1 << 20) - 1
MOST_SCALE = (1 << 16) - 1
MOST_MULTIPLIER = 1 << 16
MOST_SHIFT = 45
"""A sum, below 2^31, times the multiplier, plus 2^(shift - 1), is below 2^53."""
_MOST_SUM = (1 << 31) - 1
MOST_SYMBOL = 1 << 20
"""Symbols of z beyond it are taken for this one, before they are scaled; no trained codec has any."""
MOST_ACTIVATION = (1 << 16) - 1
MOST_MEDIAN = (1 << 30) - 1
UPSAMPLING = 4
"""Rows and columns of y for each of z: h_s doubles them twice."""
HALO = 2
"""Rows and columns of z on each side that a value of y depends on, beside its own."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution in integers with its activation.

    Attributes:
        weight: int8 [C_out, C_in, k, k]; k = 3 is a convolution of stride 1 and padding 1; k = 5 is a transposed
            convolution of stride 2, padding 2 and output padding 1, which doubles rows and columns.
        bias: int32 [C_out].
        multiplier: int32 [C_out], 0 to 2^16, of sums that are not negative.
        shift: int32 [C_out], 1 to 45.
        slope: of the activation for negative sums, in units of 2^-16: 0 is ReLU, 65536 is none. For negative sums the
            multiplier is (multiplier * slope + 2^15) >> 16.
        most: outputs are clamped to -most..most, and after ReLU to 0..most.
    """

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]
    slope: int
    most: int

    def __post_init__(self) -> None:
        """Raises InputError if the numbers are not such a layer."""
        channels = self.weight.shape[:1]
        vectors = (self.bias, self.multiplier, self.shift)
        if self.weight.dtype != np.int8 or any(each.dtype != np.int32 for each in vectors):
            raise InputError("an integer network of another type than int8 weights and int32 vectors")
        if self.weight.ndim != 4 or self.weight.shape[2:] not in ((3, 3), (5, 5)) or not self.weight.size:
            raise InputError(f"an integer network with weights of shape {self.weight.shape}")
        if any(each.shape != channels for each in vectors):
            raise InputError("an integer network whose vectors differ in their number of channels")
        for name, values, least, most in (
            ("multiplier", self.multiplier, 0, MOST_MULTIPLIER),
            ("shift", self.shift, 1, MOST_SHIFT),
            ("slope", np.array(self.slope), 0, LINEAR),
            ("range", np.array(self.most), 1, MOST_MEAN),
        ):
            if values.min() < least or values.max() > most:
                raise InputError(f"an integer network whose {name} is not in {least}..{most}")

    @property
    def transposed(self) -> bool:
        """Whether the layer doubles rows and columns."""
        return self.weight.shape[-1] == 5

    @property
    def least(self) -> int:
        """The smallest output."""
        return -self.most if self.slope else 0

    @cached_property
    def factors(self) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
        """For positive sums and for negative ones: with factor and offset [C_out, 1], floor(sum * factor + offset)."""
        multiplier = self.multiplier.astype(np.int64)
        unit = np.ldexp(1.0, -self.shift)[:, None]
        factors = [each[:, None] * unit for each in (multiplier, (multiplier * self.slope + (1 << 15)) >> 16)]
        return tuple((factor, self.bias[:, None] * factor + 0.5) for factor in factors)

    def most_input(self) -> int:
        """The largest magnitude of inputs for which no sum, with its bias, leaves 32 bits."""
        weights = np.abs(self.weight.astype(np.int64)).sum((1, 2, 3))
        return int(((_MOST_SUM - np.abs(self.bias.astype(np.int64))) // np.maximum(weights, 1)).min())

    def needed(self, outputs: Span, length: int) -> Span:
        """The rows of the input, of `length`, that these rows of the output depend on."""
        first, end = (outputs[0] // 2, -(-outputs[1] // 2)) if self.transposed else outputs
        return max(0, first - 1), min(length, end + 1)


def kernels(layer: Layer) -> NDArray[np.int8]:
    """A layer as convolutions of kernel 3 and stride 1: one, or in a transposed layer one for each parity.

    Returns:
        [P, P, C_out, C_in, 3, 3] by the parity of the output's row and column; P is 1, or 2 if the layer is transposed.
        Weight [.., 1 + dy, 1 + dx] takes the input at row offset dy and column offset dx.
    """
    if not layer.transposed:
        return layer.weight[None, None]
    found = np.zeros((2, 2, *layer.weight.shape[:2], 3, 3), np.int8)
    for ry, rx in np.ndindex(2, 2):  # output row 2 i + ry takes weight ry + 2 - 2 dy times input row i + dy
        found[ry, rx, :, :, ry:, rx:] = layer.weight[:, :, 4 - ry :: -2, 4 - rx :: -2][:, :, : 3 - ry, : 3 - rx]
    return found


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """The integer h_s: from the symbols of z to the table index of each value of y, and to its mean.

    Attributes:
        layers: two transposed layers and one of stride 1. The last one's output is the scale in units of 2^-8, and for
            a mean-scale hyperprior, as a second half of its channels, the mean in units of 2^-6.
        medians: int32 [N], of z, in units of 2^-fraction.
        fraction: fractional bits of the input.
        most: the input is clamped to -most..most.
        thresholds: int32 [rows - 1], rising: a scale's index is the number of thresholds that are not above it.
        has_means: whether there are means.

    Raises:
        InputError: the numbers are not such a network, or a sum can leave 32 bits.
    """

    layers: tuple[Layer, ...]
    medians: NDArray[np.int32]
    fraction: int
    most: int
    thresholds: NDArray[np.int32]
    has_means: bool

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if any(each.dtype != np.int32 or each.ndim != 1 for each in (self.medians, self.thresholds)):
            raise InputError("an integer network of another type than int32 medians and thresholds")
        if self.medians.min(initial=0) < -MOST_MEDIAN or self.medians.max(initial=0) > MOST_MEDIAN:
            raise InputError("an integer network whose medians have more than 31 bits")
        if not 0 <= self.fraction <= 10 or not 1 <= self.most <= MOST_ACTIVATION:
            raise InputError(f"an integer network with {self.fraction} fractional bits and inputs up to {self.most}")
        if len(self.thresholds) > 255 or (np.diff(self.thresholds.astype(np.int64), prepend=0) < 0).any():
            raise InputError("an integer network whose thresholds do not rise")
        if [each.transposed for each in self.layers] != [True, True, False]:
            raise InputError("an integer network of other layers than h_s has")
        widths = [len(self.medians), *(len(each.weight) for each in self.layers)]
        if [each.weight.shape[1] for each in self.layers] != widths[:-1]:
            raise InputError("an integer network whose layers do not fit together")
        if self.has_means and widths[-1] % 2:
            raise InputError("an integer network with other numbers of scales and of means")
        inputs = self.most
        for layer in self.layers:
            if inputs > min(MOST_ACTIVATION, layer.most_input()):
                raise InputError("an integer network whose sums can leave 32 bits")
            inputs = layer.most

    @property
    def channels(self) -> int:
        """M, the channels of y."""
        return len(self.layers[-1].weight) // (2 if self.has_means else 1)

    @cached_property
    def _convolutions(self) -> list[Winograd]:
        """The convolutions of each layer."""
        return [Winograd(kernels(layer)) for layer in self.layers]

    @cached_property
    def indexes(self) -> NDArray[np.uint8]:
        """The index of each scale."""
        scales = np.arange(MOST_SCALE + 1)
        return np.searchsorted(self.thresholds, scales, side="right").astype(np.uint8)

    def context(
        self,
        z: NDArray[np.int32],
        rows: Span,
        columns: Span,
        of_z: Scaling | None = None,
        of_y: Scaling | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
        """Table indexes and means of the values of y that belong to a window of z.

        Args:
            z: symbols [N, zh, zw] of the whole picture.
            rows, columns: the window, in rows and columns of z.
            of_z, of_y: the gains with which z and y are rounded; None: 1.

        Returns:
            Indexes uint8 and means int32 (in units of 2^-6; None without means), both [M, 4 * rows, 4 * columns].
        """
        seen = [(max(0, a - HALO), min(n, b + HALO)) for (a, b), n in zip((rows, columns), z.shape[1:], strict=True)]
        z = z[:, slice(*seen[0]), slice(*seen[1])]
        first, left = (UPSAMPLING * (own[0] - each[0]) for own, each in zip((rows, columns), seen, strict=True))
        end, right = (UPSAMPLING * (own[1] - each[0]) for own, each in zip((rows, columns), seen, strict=True))
        values = self._run(self._inputs(z, of_z), (first, end))[:, :, left:right].astype(np.int32)
        scales = np.clip(values[: self.channels], 0, MOST_SCALE)
        if of_y is not None:  # below 2^32: a gain is 2^16 at most
            scaled = scales.astype(np.uint32) * of_y.fixed.astype(np.uint32)[:, None, None]
            scales = ((scaled + np.uint32(1 << GAIN_BITS >> 1)) >> np.uint32(GAIN_BITS)).astype(np.uint16)
        return self.indexes.take(scales), values[self.channels :] if self.has_means else None

    def _inputs(self, z: NDArray[np.int32], scaling: Scaling | None) -> NDArray[np.int32]:
        """The first layer's inputs [N, h, w]: z with its medians, in units of 2^-fraction."""
        z = np.clip(z, -MOST_SYMBOL, MOST_SYMBOL)
        if scaling is None:
            scaled = z * np.int32(1 << self.fraction)
        else:
            down = GAIN_BITS - self.fraction
            wide = (z * scaling.inverse[:, None, None] + (1 << down >> 1)) >> down
            scaled = np.clip(wide, -MOST_MEDIAN, MOST_MEDIAN).astype(np.int32)
        return np.clip(scaled + self.medians[:, None, None], -self.most, self.most)

    def _run(self, x: NDArray[np.int32], rows: Span) -> NDArray[np.float32]:
        """The last layer's outputs [C, rows, 4 * zw] for all columns of the inputs, which border on zeros."""
        spans, lengths = [rows], [x.shape[1], 2 * x.shape[1], 4 * x.shape[1]]
        for layer, length in zip(reversed(self.layers), reversed(lengths), strict=True):
            spans.insert(0, layer.needed(spans[0], length))
        found = x[:, slice(*spans[0])].astype(np.float32)
        for layer, convolutions, (first, _), outputs in zip(
            self.layers, self._convolutions, spans[:-1], spans[1:], strict=True
        ):
            found = _convolve(found, layer, convolutions, first, outputs)
        return found


def _convolve(
    x: NDArray[np.float32], layer: Layer, convolutions: Winograd, first: int, outputs: Span
) -> NDArray[np.float32]:
    """Rows `outputs` of a layer's result [C_out, rows, columns].

    Args:
        x: [C_in, h, w], integers; the input's rows from `first` on. Beyond them are zeros, or rows that do not matter.
        convolutions: those of the layer.
    """
    phases = 2 if layer.transposed else 1
    start, end = outputs[0] // phases - first, -(-outputs[1] // phases) - first
    tiles = -(-(end - start) // 2), -(-x.shape[2] // 2)
    found = np.empty((len(layer.weight), tiles[0], 2 * phases, tiles[1], 2 * phases), np.float32)
    for bands, sums in convolutions.sums(x, start, end - start):
        rescaled = _rescaled(sums, layer)
        for row, column, ry, rx in np.ndindex(*sums.shape[:4]):  # numpy is slow with arrays of seven dimensions
            place = found[:, bands, row * phases + ry, :, column * phases + rx]
            place[:] = rescaled[row, column, ry, rx, ..., :-1]
    cut = outputs[0] - phases * (start + first)
    whole = found.reshape(len(found), 2 * phases * tiles[0], 2 * phases * tiles[1])
    return whole[:, cut : cut + outputs[1] - outputs[0], : phases * x.shape[2]]


def _rescaled(sums: NDArray[Any], layer: Layer) -> NDArray[np.float64]:
    """The layer's outputs, from 4 times their sums [2, 2, P, P, C_out, bands, columns].

    Every number is a multiple of 2^-shift, or of 2^-1, that a float64 represents.
    """
    (factor, offset), (negative, negative_offset) = ([each[:, None] for each in pair] for pair in layer.factors)
    values = sums.astype(np.float64)
    other = values * (negative / 4) + negative_offset if 0 < layer.slope < LINEAR else None
    values *= factor / 4
    values += offset
    if other is not None:
        np.maximum(values, other, out=values)
    np.floor(values, out=values)
    return np.clip(values, layer.least, layer.most, out=values)
