"""Entropy coders of codecs with several rates, and the coder for any codec's tables. Needs no torch."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.coder import Coder
from codec.bitstream.gains import VALUE_BITS
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.rate_tables import RateTables
from codec.bitstream.tables import AnyTables, Tables
from codec.errors import InputError

_KEPT = 4
"""Coders of so many rates are kept: neighbouring files often have the same rate."""


class RateCoder:
    """Gives the coder of each rate.

    Args:
        tables: the tables of a codec with several rates.

    Attributes:
        tables: the tables.
        medians, unit, channels_of_z: those of the coder of every rate.
        most: the number of the highest rate; the lowest is 0.
    """

    unit = 2.0**-VALUE_BITS

    def __init__(self, tables: RateTables) -> None:
        self.tables = tables
        self.medians: NDArray[np.float32] = tables.medians[:, None, None]
        self.channels_of_z = len(tables.density.first) if tables.hyper else 0
        self.most = tables.most
        self._kept = lru_cache(_KEPT)(self._at)

    def at(self, rate: int) -> Coder | HyperCoder:
        """The coder of a rate.

        Raises:
            InputError: there is no such rate.
        """
        if not 0 <= rate <= self.most:
            raise InputError(f"it has rate {rate}, and this codec has rates 0 to {self.most}; it is damaged")
        return self._kept(rate)

    def gain_of_density(self, rate: int | None) -> NDArray[np.float32]:
        """The gains [C, 1, 1] of the latent that has learned densities; None: the highest rate."""
        rate = self.most if rate is None else rate
        return (self.tables.scaling_of_z(rate) if self.tables.hyper else self.tables.gains.at(rate)).gain

    def _at(self, rate: int) -> Coder | HyperCoder:
        tables, scaling = self.tables, self.tables.gains.at(rate)
        if tables.hyper:
            return HyperCoder(tables.hyper_tables(rate), scaling, tables.scaling_of_z(rate))
        rows = tables.density.rows(scaling)
        return Coder(Tables(tables.medians, rows.offsets, rows.lengths, rows.cdfs, tables.fingerprint), scaling)


AnyCoder = Coder | HyperCoder | RateCoder


def coder_of(tables: AnyTables) -> AnyCoder:
    """The coder for a codec's tables."""
    if isinstance(tables, RateTables):
        return RateCoder(tables)
    return HyperCoder(tables) if isinstance(tables, HyperTables) else Coder(tables)


def at_rate(coder: AnyCoder, rate: int | None) -> Coder | HyperCoder:
    """The coder of a rate; None: the highest, which is the only one of a codec without rates."""
    if isinstance(coder, RateCoder):
        return coder.at(coder.most if rate is None else rate)
    if rate is not None:
        raise InputError("this codec has a single rate")
    return coder
