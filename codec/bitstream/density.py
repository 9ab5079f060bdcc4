"""Learned densities as integers, from which the CDF rows of every rate are computed. Needs no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.gains import GAIN_BITS, Scaling
from codec.bitstream.rows import PRECISION, Rows
from codec.errors import InputError

DENSITY_BITS = 24
"""Bits of a cumulative density."""
SAMPLES = 256
"""Most intervals of a channel's density."""
MOST_SHIFT = 28
_MOST_SYMBOLS = 1 << 14
MOST_ENTRIES = 1 << 23
"""Most entries of the rows of all channels, which are as long as the longest: 64 MB in each step of `rows`."""


@dataclass(frozen=True, eq=False)
class Density:
    """The cumulative density of each channel around its median.

    Value j of channel c is the density below (first[c] + j) * 2^(shift[c] - 16), in units of 2^-24.

    Attributes:
        first: int32 [C].
        shift: int32 [C], 0 to 28.
        values: int32 [C, J + 1], each row rises from 0 to 2^24.

    Raises:
        InputError: the arrays are no such densities.
    """

    first: NDArray[np.int32]
    shift: NDArray[np.int32]
    values: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Checks the arrays."""
        arrays = (self.first, self.shift, self.values)
        if any(array.dtype != np.int32 for array in arrays) or self.values.ndim != 2:
            raise InputError("densities of another type than int32 rows")
        channels, points = self.values.shape
        if not channels or points < 2 or {(channels,)} != {self.first.shape, self.shift.shape}:
            raise InputError("densities whose arrays differ in their number of channels")
        if self.shift.min() < 0 or self.shift.max() > MOST_SHIFT or self.first.min() <= -points or self.first.max() > 0:
            raise InputError("densities that are too wide, or lie beside their medians")
        if (np.diff(self.values, axis=1) < 0).any() or self.values[:, 0].any():
            raise InputError("densities that fall")
        if (self.values[:, -1] != 1 << DENSITY_BITS).any():
            raise InputError("densities that do not end at 1")

    def rows(self, scaling: Scaling) -> Rows:
        """The CDF rows at a rate: symbol k stands for the values between (k - 1/2) / gain and (k + 1/2) / gain.

        A row has the symbols whose values lie at least in part within the samples, and a last interval for all others.
        Every interval gets at least one of 65536 parts.

        Raises:
            InputError: a row, or all rows together, would have too many symbols.
        """
        points = self.values.shape[1]
        ends = (np.stack([self.first, self.first + points - 1]).astype(np.int64) << self.shift) * 2
        inverse = scaling.inverse
        lowest = -((inverse - ends[0]) // (2 * inverse))  # the first symbol whose upper end lies above ends[0]
        highest = (ends[1] + inverse) // (2 * inverse)
        counts = highest - lowest + 1
        if counts.max() > _MOST_SYMBOLS or counts.max() * len(counts) > MOST_ENTRIES:
            raise InputError("densities that give too many symbols")
        places = np.arange(counts.max() + 1)[None]
        bounds = (2 * (lowest[:, None] + np.minimum(places, counts[:, None])) - 1) * inverse[:, None]
        below = self._at(bounds)
        share = (1 << PRECISION) - counts[:, None] - 1
        cdfs = places + ((below - below[:, :1]) * share >> DENSITY_BITS)
        padded = np.zeros((len(cdfs), cdfs.shape[1] + 1), np.int32)
        padded[:, :-1] = np.where(places <= counts[:, None], cdfs, 0)
        padded[np.arange(len(padded)), counts + 1] = 1 << PRECISION
        return Rows(lowest.astype(np.int32), (counts + 2).astype(np.int32), padded)

    def _at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The densities below places [C, n], in units of 2^-17, interpolated between the samples."""
        shift = self.shift[:, None] + 1
        points = self.values.shape[1]
        inside = np.clip(places - (self.first[:, None].astype(np.int64) << shift), 0, (points - 1) << shift)
        lower = np.minimum(inside >> shift, points - 2)
        part = inside - (lower << shift)
        row = np.arange(len(self.values))[:, None]
        values = self.values.astype(np.int64)
        found: NDArray[np.int64] = values[row, lower] + ((values[row, lower + 1] - values[row, lower]) * part >> shift)
        return found


assert GAIN_BITS == 16  # places are in units of half of a gain's
