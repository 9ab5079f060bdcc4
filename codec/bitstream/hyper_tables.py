"""Entropy tables of a hyperprior codec: CDF rows of z and of y, and the integer h_s. Needs no torch."""

import hashlib
import math
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.integer import IntegerNetwork, Layer
from codec.bitstream.rows import PRECISION, Rows
from codec.bitstream.state import NO_TABLES, State, decoder_fingerprint, medians_of, rows_of
from codec.errors import InputError

PREFIX = "integer_h_s."
"""Begins the names of the arrays of the integer h_s in a checkpoint."""

ARCHES = {1: "bmshj2018_hyperprior", 2: "mbt2018_mean"}
"""The architectures with a hyperprior, by their number in files."""

VERSION = 2
"""Of the file of entropy tables."""
_HEADER = struct.Struct("<10I")  # fingerprint, precision, architecture, N, Lz, rows of y, Ly, fraction, most, layers
_MOST_LAYERS = 8
_OTHER_LENGTH = "entropy tables whose length is not what their header says; export the model again"
_LAYER = struct.Struct("<5I")  # C_out, C_in, k, slope, most


@dataclass(frozen=True, eq=False)
class HyperTables:
    """The tables of a scale hyperprior, or of a mean-scale hyperprior.

    Attributes:
        z: a row for each of the N channels of z.
        y: the Gaussians, from the narrowest to the widest; all channels of y share them.
        network: tells the row, and the mean, of each value of y.
        fingerprint: 32 bits that identify the codec's decoder, tables and network.

    Raises:
        InputError: the parts do not fit together.
    """

    z: Rows
    y: Rows
    network: IntegerNetwork
    fingerprint: int

    def __post_init__(self) -> None:
        """Compares the sizes."""
        if len(self.z.offsets) != len(self.network.medians):
            raise InputError("entropy tables of z and an integer network of other channels")
        if len(self.y.offsets) != len(self.network.thresholds) + 1:
            raise InputError("entropy tables of y and an integer network of other scales")

    @property
    def number(self) -> int:
        """The architecture's number in files."""
        return number_of(self.network)

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return ARCHES[self.number]

    @property
    def channels(self) -> int:
        """M, the channels of y."""
        return self.network.channels


def number_of(network: IntegerNetwork) -> int:
    """The number of the architecture whose h_s this is."""
    return 2 if network.has_means else 1


def hyper_tables_of_state(state: State, g_s: dict[str, Any]) -> HyperTables:
    """The entropy tables of a checkpoint with a hyperprior.

    The fingerprint covers all that decoding a file depends on: the rows, the integer h_s, g_s and its block.

    Args:
        state: a codec's state dict, with the arrays of `network_arrays` under `PREFIX`.
        g_s: the block of the decoder, as in the architecture.

    Raises:
        InputError: the codec has no tables, or they do not fit its weights.
    """
    z, y = rows_of(state, "entropy_bottleneck"), rows_of(state, "gaussian_conditional")
    arrays = {name: array for name, array in state.items() if name.startswith(PREFIX)}
    if not arrays:
        raise InputError(NO_TABLES)
    network = network_of_arrays({name.removeprefix(PREFIX): array for name, array in arrays.items()}, source(state))
    read = {f"{part}.{name}": array for part, rows in (("z", z), ("y", y)) for name, array in vars(rows).items()}
    return HyperTables(z, y, network, decoder_fingerprint(state, g_s, read | arrays, arch=ARCHES[number_of(network)]))


def source(state: State) -> NDArray[np.uint8]:
    """SHA-256 [32] of the float arrays that the integer h_s was made from: h_s, the medians and the scale table."""
    wanted = re.compile(r"h_s\.\d+\.(weight|bias)|gaussian_conditional\.scale_table")
    digest = hashlib.sha256()
    for name in sorted(state):
        if wanted.fullmatch(name):
            array = np.ascontiguousarray(state[name], np.float32)
            digest.update(f"{name} {array.shape}\n".encode() + array.tobytes())
    digest.update(np.ascontiguousarray(medians_of(state), np.float32).tobytes())
    return np.frombuffer(digest.digest(), np.uint8).copy()


def network_arrays(network: IntegerNetwork, made_from: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """A network as arrays, to store beside the weights whose `source` is given."""
    numbers = (network.fraction, network.most, int(network.has_means))
    arrays: dict[str, NDArray[Any]] = {
        "medians": network.medians,
        "thresholds": network.thresholds,
        "numbers": np.array(numbers, np.int32),
        "source": made_from,
    }
    for number, layer in enumerate(network.layers):
        arrays |= {f"{number}.{name}": getattr(layer, name) for name in ("weight", "bias", "multiplier", "shift")}
        arrays[f"{number}.numbers"] = np.array((layer.slope, layer.most), np.int32)
    return arrays


def network_of_arrays(arrays: State, made_from: NDArray[np.uint8]) -> IntegerNetwork:
    """The inverse of `network_arrays`.

    Raises:
        InputError: the arrays are no such network, or it was made from other weights.
    """
    depth = (len(arrays) - 4) // 5
    names = {"medians", "thresholds", "numbers", "source"}
    names |= {f"{i}.{name}" for i in range(depth) for name in ("weight", "bias", "multiplier", "shift", "numbers")}
    numbers = {name: (3,) if name == "numbers" else (2,) for name in names if name.endswith("numbers")}
    if arrays.keys() != names or any(
        arrays[name].shape != shape or arrays[name].dtype != np.int32 for name, shape in numbers.items()
    ):
        raise InputError("this codec's integer network is incomplete; give a checkpoint that training wrote")
    if not np.array_equal(arrays["source"], made_from):
        raise InputError(
            "CDF tables are stale: the integer h_s was made from other weights; give a checkpoint that training wrote"
        )
    fraction, most, has_means = arrays["numbers"].tolist()
    layers = [
        Layer(
            weight=arrays[f"{i}.weight"].copy(),
            bias=arrays[f"{i}.bias"].copy(),
            multiplier=arrays[f"{i}.multiplier"].copy(),
            shift=arrays[f"{i}.shift"].copy(),
            slope=int(arrays[f"{i}.numbers"][0]),
            most=int(arrays[f"{i}.numbers"][1]),
        )
        for i in range(depth)
    ]
    medians, thresholds = arrays["medians"].copy(), arrays["thresholds"].copy()
    return IntegerNetwork(tuple(layers), medians, fraction, most, thresholds, bool(has_means))


def to_bytes(tables: HyperTables) -> bytes:
    """The tables as little-endian 32-bit words, from the fingerprint on; int8 weights are padded to whole words."""
    network = tables.network
    fields = (*tables.z.cdfs.shape, *tables.y.cdfs.shape, network.fraction, network.most, len(network.layers))
    header = _HEADER.pack(tables.fingerprint, PRECISION, tables.number, *fields)
    return header + rows_bytes(tables.z) + rows_bytes(tables.y) + network_bytes(network)


def rows_bytes(rows: Rows) -> bytes:
    """CDF rows as words: offsets, lengths, CDFs."""
    return words_bytes(rows.offsets, rows.lengths, rows.cdfs)


def words_bytes(*arrays: NDArray[np.int32]) -> bytes:
    """Arrays as little-endian 32-bit words."""
    return b"".join(array.astype("<i4").tobytes() for array in arrays)


def network_bytes(network: IntegerNetwork) -> bytes:
    """The medians, the thresholds and the layers of a network; its other numbers belong to the header."""
    parts = [words_bytes(network.medians, network.thresholds)]
    for layer in network.layers:
        parts.append(_LAYER.pack(*layer.weight.shape[:3], layer.slope, layer.most))
        parts.append(words_bytes(layer.bias, layer.multiplier, layer.shift))
        parts.append(layer.weight.tobytes() + bytes(-layer.weight.size % 4))
    return b"".join(parts)


def from_bytes(data: memoryview) -> HyperTables:
    """The inverse of `to_bytes`; raises InputError if the data is not such tables."""
    reader = Reader(data)
    fingerprint, _, number, channels, longest, scales, longest_y, fraction, most, depth = reader.numbers(_HEADER)
    check_number(number, ARCHES)
    z, y = reader.rows(channels, longest), reader.rows(scales, longest_y)
    network = reader.network(number, channels, scales, fraction, most, depth)
    reader.end()
    return HyperTables(z, y, network, fingerprint)


def check_number(number: int, known: Collection[int]) -> None:
    """Refuses an architecture that this program does not know."""
    if number not in known:
        raise InputError(
            f"entropy tables of an architecture with the number {number}; use a newer version of this program"
        )


class Reader:
    """Takes arrays from bytes, one after the other; checks lengths before it allocates memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._place = data, 0

    def numbers(self, form: struct.Struct) -> tuple[int, ...]:
        """The numbers of a header."""
        return form.unpack(self._take(form.size))

    def words(self, *shape: int) -> NDArray[np.int32]:
        """An array of 32-bit words."""
        return np.frombuffer(self._take(4 * math.prod(shape)), "<i4").reshape(shape).astype(np.int32)

    def weights(self, *shape: int) -> NDArray[np.int8]:
        """An array of int8, which ends with a word."""
        size = math.prod(shape)
        return np.frombuffer(self._take(size + -size % 4), np.int8)[:size].reshape(shape).copy()

    def rows(self, count: int, longest: int) -> Rows:
        """CDF rows, as `rows_bytes` wrote them."""
        return Rows(self.words(count), self.words(count), self.words(count, longest))

    def network(self, number: int, channels: int, scales: int, fraction: int, most: int, depth: int) -> IntegerNetwork:
        """A network, as `network_bytes` wrote it.

        Args:
            number: of the architecture.
            channels: of z.
            scales: rows of y.
            depth: the number of layers.
        """
        medians, thresholds, layers = self.words(channels), self.words(scales - 1), []
        for _ in range(min(depth, _MOST_LAYERS)):
            outputs, inputs, size, slope, limit = self.numbers(_LAYER)
            bias, multiplier, shift = (self.words(outputs) for _ in range(3))
            layers.append(Layer(self.weights(outputs, inputs, size, size), bias, multiplier, shift, slope, limit))
        return IntegerNetwork(tuple(layers), medians, fraction, most, thresholds, has_means=number == 2)

    def end(self) -> None:
        """Refuses bytes that were not taken."""
        if self._place != len(self._data):
            raise InputError(_OTHER_LENGTH)

    def _take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self._data) - self._place:
            raise InputError(_OTHER_LENGTH)
        self._place += size
        return self._data[self._place - size : self._place]
