"""Gains of a codec with several rates: how much coarser each channel is rounded at a lower rate. Needs no torch.

A gain is 2^(-exponent / 256). The exponents are integers, and gains in units of 2^-16 follow from them by the integers
of `POWERS`, so that all machines have the same gains.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from codec.description.architecture import MOST_RATES
from codec.errors import InputError

STEPS = 64
"""Rates in files from one trained rate to the next: a step changes a file's size by about 0.6 %."""
GAIN_BITS = 16
"""Fractional bits of a gain and of its inverse."""
VALUE_BITS = 6
"""Fractional bits of a decoded value: rounding to 1/64 adds nothing to the error of half a symbol."""
OCTAVE = 256
"""Units of an exponent in a factor of two: a unit is 0.27 %."""
MOST_EXPONENT = 12 * OCTAVE
MOST_VALUE = 1 << 30
"""A decoded value, in units of 2^-6, stays below it."""
_DOWN = GAIN_BITS - VALUE_BITS

POWERS = np.rint(2.0**GAIN_BITS * 2.0 ** (np.arange(OCTAVE) / OCTAVE)).astype(np.int32)
"""2^(i / 256) in units of 2^-16."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """The gain of each channel of a latent at one rate.

    Attributes:
        exponents: int32 [C].
    """

    exponents: NDArray[np.int32]

    @cached_property
    def gain(self) -> NDArray[np.float32]:
        """What the encoder multiplies by before it rounds, [C, 1, 1]."""
        gains: NDArray[np.float32] = np.exp2(-self.exponents / OCTAVE).astype(np.float32)[:, None, None]
        return gains

    @cached_property
    def fixed(self) -> NDArray[np.int32]:
        """The gain in units of 2^-16, 0 < gain <= 2^16, [C]."""
        whole = -(-self.exponents // OCTAVE)
        powers = POWERS[whole * OCTAVE - self.exponents]
        fixed: NDArray[np.int32] = (powers + (1 << whole >> 1)) >> whole
        return fixed

    @cached_property
    def inverse(self) -> NDArray[np.int64]:
        """1 / gain in units of 2^-16, [C]."""
        inverse: NDArray[np.int64] = POWERS[self.exponents % OCTAVE].astype(np.int64) << (self.exponents // OCTAVE)
        return inverse

    def decoded(self, symbols: NDArray[np.int32]) -> NDArray[np.int32]:
        """symbol / gain in units of 2^-6, rounded, of symbols [C, ...], in place.

        Raises:
            InputError: a symbol is too large.
        """
        self.check(symbols)
        for channel, inverse in zip(symbols, self.inverse, strict=True):
            # numpy 1 would multiply int32 by a scalar in 32 bits
            channel[:] = (channel.astype(np.int64) * inverse + (1 << _DOWN >> 1)) >> _DOWN
        return symbols

    def check(self, symbols: NDArray[np.int32]) -> None:
        """Raises InputError if a decoded value of symbols [C, ...] would be too large."""
        for channel, inverse in zip(symbols, self.inverse.tolist(), strict=True):
            if max(int(channel.max(initial=0)), -int(channel.min(initial=0))) * inverse >> _DOWN >= MOST_VALUE:
                raise InputError("its symbols are too large; it is damaged, or the codec's training has diverged")


@dataclass(frozen=True, eq=False)
class Gains:
    """The gains of a latent's channels at every rate.

    Attributes:
        exponents: int32 [R, C], those of the trained rates, from the lowest to the highest, whose gains are all 1.

    Raises:
        InputError: the array is no such gains.
    """

    exponents: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Checks the array."""
        if self.exponents.dtype != np.int32 or self.exponents.ndim != 2:
            raise InputError("gains of another type than int32 rows")
        if not 2 <= len(self.exponents) <= MOST_RATES:
            raise InputError(f"gains of {len(self.exponents)} rates; there are 2 to {MOST_RATES}")
        if self.exponents.max(initial=0) > MOST_EXPONENT or (np.diff(self.exponents, axis=0) > 0).any():
            raise InputError("gains that do not rise from rate to rate, or are too small")
        if self.exponents[-1].any():
            raise InputError("gains of the highest rate that are not 1")

    @property
    def most(self) -> int:
        """The number of the highest rate in files; the lowest is 0."""
        return STEPS * (len(self.exponents) - 1)

    def at(self, rate: int) -> Scaling:
        """The gains at a rate, 0 to `most`; between trained rates the exponents are interpolated."""
        lower, part = divmod(rate, STEPS)
        upper = min(lower + 1, len(self.exponents) - 1)
        mixed = self.exponents[lower] * (STEPS - part) + self.exponents[upper] * part
        return Scaling((mixed + STEPS // 2) // STEPS)
