"""Entropy tables of a codec with several rates: gains and densities, from which the tables of each rate follow.

Needs no torch. docs/rd.md describes the file byte by byte.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.density import Density
from codec.bitstream.gains import POWERS, Gains, Scaling
from codec.bitstream.hyper_tables import (
    ARCHES,
    PREFIX,
    HyperTables,
    Reader,
    check_number,
    network_bytes,
    network_of_arrays,
    number_of,
    rows_bytes,
    source,
    words_bytes,
)
from codec.bitstream.integer import IntegerNetwork
from codec.bitstream.rows import PRECISION, Rows
from codec.bitstream.state import NO_TABLES, State, decoder_fingerprint, medians_of, rows_of
from codec.errors import InputError

VERSION = 3
"""Of the file of entropy tables."""
FACTORIZED = 0
"""The number of bmshj2018_factorized in files of several rates."""
_HEADER = struct.Struct("<7I")  # fingerprint, precision, architecture, M, rates, channels of the density, points
_HYPER = struct.Struct("<5I")  # rows of y, Ly, fraction, most, layers
_NAMES = {"exponents": "{}_gains.exponents", "density": "density.{}"}


@dataclass(frozen=True, eq=False)
class Hyper:
    """What a codec with a hyperprior has in addition.

    Attributes:
        z_gains: the gains of z.
        y: the Gaussians, from the narrowest to the widest.
        network: the integer h_s.
    """

    z_gains: Gains
    y: Rows
    network: IntegerNetwork


@dataclass(frozen=True, eq=False)
class RateTables:
    """The tables of a codec with several rates.

    Attributes:
        gains: those of y.
        density: of y, or with a hyperprior of z.
        medians: float32 [M] of y; zeros with a hyperprior.
        fingerprint: 32 bits that identify the codec's decoder and all of this.
        hyper: None without a hyperprior.

    Raises:
        InputError: the parts do not fit together.
    """

    gains: Gains
    density: Density
    medians: NDArray[np.float32]
    fingerprint: int
    hyper: Hyper | None = None

    def __post_init__(self) -> None:
        """Compares the sizes."""
        rates, channels = self.gains.exponents.shape
        coded = (rates, channels) if self.hyper is None else self.hyper.z_gains.exponents.shape
        if self.medians.dtype.kind != "f" or self.medians.shape != (channels,) or not np.isfinite(self.medians).all():
            raise InputError("entropy tables whose medians are not as many finite numbers as there are channels")
        if coded != (rates, len(self.density.first)):
            raise InputError("entropy tables whose gains and densities differ in their number of channels or rates")
        if self.hyper and self.hyper.network.channels != channels:
            raise InputError("entropy tables whose gains and integer network differ in their number of channels")
        if self.hyper and len(self.hyper.y.offsets) != len(self.hyper.network.thresholds) + 1:
            raise InputError("entropy tables of y and an integer network of other scales")

    @property
    def number(self) -> int:
        """The architecture's number in files."""
        return number_of(self.hyper.network) if self.hyper else FACTORIZED

    @property
    def channels(self) -> int:
        """M, the channels of y."""
        return len(self.medians)

    @property
    def most(self) -> int:
        """The number of the highest rate."""
        return self.gains.most

    def scaling_of_z(self, rate: int) -> Scaling:
        """The gains of z at a rate."""
        assert self.hyper
        return self.hyper.z_gains.at(rate)

    def hyper_tables(self, rate: int) -> HyperTables:
        """The tables of a codec with a hyperprior at a rate."""
        assert self.hyper
        z = self.density.rows(self.scaling_of_z(rate))
        return HyperTables(z, self.hyper.y, self.hyper.network, self.fingerprint)


def has_rates(state: State) -> bool:
    """Whether a state dict is of a codec with several rates."""
    return _NAMES["exponents"].format("y") in state


def rate_tables_of_state(state: State, g_s: dict[str, Any]) -> RateTables:
    """The entropy tables of a checkpoint with several rates; arguments and errors as `tables_of_state`."""
    parts = {name: state.get(_NAMES["density"].format(name)) for name in ("first", "shift", "values")}
    y_gains = state[_NAMES["exponents"].format("y")]
    rows_of(state, "entropy_bottleneck")  # refuses a codec that has no tables
    if any(array is None for array in parts.values()):
        raise InputError(NO_TABLES)
    density = Density(**{name: array.copy() for name, array in parts.items() if array is not None})
    read = {f"density.{name}": array for name, array in vars(density).items()} | {"gains.y": y_gains}
    medians = medians_of(state)
    if not any(name.startswith("h_s.") for name in state):
        number = decoder_fingerprint(state, g_s, read | {"medians": medians}, rates="all")
        return RateTables(Gains(y_gains.copy()), density, medians, number)
    rows, z_gains = rows_of(state, "gaussian_conditional"), state.get(_NAMES["exponents"].format("z"))
    arrays = {name: array for name, array in state.items() if name.startswith(PREFIX)}
    if z_gains is None or not arrays:
        raise InputError(NO_TABLES)
    network = network_of_arrays({name.removeprefix(PREFIX): array for name, array in arrays.items()}, source(state))
    read |= {f"y.{name}": array for name, array in vars(rows).items()} | arrays | {"gains.z": z_gains}
    number = decoder_fingerprint(state, g_s, read, arch=ARCHES[number_of(network)], rates="all")
    hyper = Hyper(Gains(z_gains.copy()), rows, network)
    return RateTables(Gains(y_gains.copy()), density, np.zeros(network.channels, np.float32), number, hyper)


def to_bytes(tables: RateTables) -> bytes:
    """The tables as little-endian 32-bit words, from the fingerprint on."""
    density, hyper = tables.density, tables.hyper
    rates, channels = tables.gains.exponents.shape
    parts = [_HEADER.pack(tables.fingerprint, PRECISION, tables.number, channels, rates, *density.values.shape)]
    if hyper:
        network = hyper.network
        parts.append(_HYPER.pack(*hyper.y.cdfs.shape, network.fraction, network.most, len(network.layers)))
    gains = [tables.gains.exponents, *([hyper.z_gains.exponents] if hyper else [])]
    parts.append(words_bytes(POWERS, *gains, density.first, density.shift, density.values))
    if hyper:
        parts += [rows_bytes(hyper.y), network_bytes(hyper.network)]
    else:
        parts.append(tables.medians.astype("<f4").tobytes())
    return b"".join(parts)


def from_bytes(data: memoryview) -> RateTables:
    """The inverse of `to_bytes`; raises InputError if the data is not such tables."""
    reader = Reader(data)
    fingerprint, _, number, channels, rates, coded, points = reader.numbers(_HEADER)
    check_number(number, {FACTORIZED, *ARCHES})
    scales, longest, fraction, most, depth = reader.numbers(_HYPER) if number else (0,) * 5
    if not np.array_equal(reader.words(len(POWERS)), POWERS):
        raise InputError("entropy tables with other powers of two than this program's")
    gains = Gains(reader.words(rates, channels))
    z_gains = Gains(reader.words(rates, coded)) if number else None
    density = Density(reader.words(coded), reader.words(coded), reader.words(coded, points))
    hyper, medians = None, np.zeros(channels, np.float32)
    if z_gains is None:
        medians = reader.words(channels).view(np.float32)
    else:
        y = reader.rows(scales, longest)
        hyper = Hyper(z_gains, y, reader.network(number, coded, scales, fraction, most, depth))
    reader.end()
    return RateTables(gains, density, medians, fingerprint, hyper)
