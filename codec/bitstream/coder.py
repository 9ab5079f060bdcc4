"""Entropy coder of bmshj2018_factorized: every channel of y has its own CDF. Needs no torch."""

from functools import cached_property

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from codec.bitstream.gains import VALUE_BITS, Scaling
from codec.bitstream.rows import RowCoder, bits_by_row
from codec.bitstream.tables import Tables
from codec.errors import InputError

LARGEST = 2.0**31 - 128
"""The largest int32 that a float32 holds."""
_BLOCK = 1 << 19
"""Values of y are rounded in blocks of channels of about this size: the copies of a large picture's would not fit."""


class Coder:
    """Codes symbols with a codec's tables.

    The payload is the stack of constriction's ANS coder (64-bit state, 32-bit words), little-endian, without the zero
    bytes at its end; `RowCoder` describes what is on it.

    Args:
        tables: the tables.
        scaling: the gains at a rate; None: the codec has one rate.

    Attributes:
        tables: the tables.
        medians: float32 [M, 1, 1]; y_hat is `decode(..) * unit + medians`.
        unit: of decoded values: 1, for they are symbols, or with gains 2^-6.
        channels_of_z: none.
    """

    channels_of_z = 0

    def __init__(self, tables: Tables, scaling: Scaling | None = None) -> None:
        self.tables = tables
        self.medians = tables.medians[:, None, None]
        self.unit = 1.0 if scaling is None else 2.0**-VALUE_BITS
        self._scaling = scaling

    @cached_property
    def _rows(self) -> RowCoder:
        return RowCoder(self.tables.rows)

    def fewest_bytes(self, height: int, width: int) -> int:
        """A lower bound of the payload's length for symbols [M, height, width]."""
        return self._rows.fewest_bytes(height * width)

    def encode(self, symbols: NDArray[np.int32], z: NDArray[np.int32] | None = None) -> bytes:
        """The payload of symbols [M, h, w]; z is None, since the codec has none.

        Raises:
            InputError: with gains, a symbol is too large.
        """
        if self._scaling is not None:
            self._scaling.check(symbols)
        coder = stream.stack.AnsCoder()
        self._rows.push(coder, symbols.reshape(len(symbols), -1))
        return stack_bytes(coder)

    def decode(self, payload: bytes, height: int, width: int) -> NDArray[np.int32]:
        """y_hat less its medians, in units of `unit`, int32 [M, height, width].

        Raises:
            InputError: the payload does not end where the symbols do, or holds a symbol that no encoder writes.
        """
        coder = stack_of(payload)
        symbols = self._rows.pop(coder, height * width)
        check_empty(coder)
        values = symbols if self._scaling is None else self._scaling.decoded(symbols)
        return values.reshape(-1, height, width)

    def round(self, y: NDArray[np.float32], z: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The symbols of y [M, h, w]: round(gain * (y - median)), half to even; see `rounded`."""
        return round_in_blocks(y, self.medians, None if self._scaling is None else self._scaling.gain)

    def bits(self, symbols: NDArray[np.int32], z: NDArray[np.int32] | None = None) -> float:
        """The bits of symbols [M, h, w] by the tables, without the few that a file has more."""
        return bits_by_row(self.tables.rows, symbols)


def round_in_blocks(
    y: NDArray[np.float32], centres: NDArray[np.float32] | None, gain: NDArray[np.float32] | None
) -> NDArray[np.int32]:
    """The symbols of y [M, h, w] as `rounded` gives them, some channels at a time.

    Args:
        centres: of the symbols that are 0, [M, 1, 1]; None: 0.
        gain: [M, 1, 1]; None: 1.
    """
    symbols = np.empty(y.shape, np.int32)
    step = max(1, _BLOCK // max(1, y[0].size))
    for first in range(0, len(y), step):
        some = slice(first, first + step)
        centred = y[some] if centres is None else y[some] - centres[some]
        symbols[some] = rounded(centred if gain is None else centred * gain[some])
    return symbols


def rounded(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Values rounded half to even.

    Raises:
        InputError: a value is not finite or has more than 32 bits.
    """
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST:
        raise InputError("it gives values that are not finite; its training has diverged, use an earlier checkpoint")
    return np.rint(values).astype(np.int32)


def stack_bytes(coder: stream.stack.AnsCoder) -> bytes:
    """A stack as a payload."""
    words: NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4", copy=False).tobytes().rstrip(b"\0")


def stack_of(payload: bytes) -> stream.stack.AnsCoder:
    """The stack of a payload; InputError if no coder wrote it."""
    if payload.endswith(b"\0"):
        raise InputError("its last byte is zero, which is never written")
    words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
    return stream.stack.AnsCoder(words)


def check_empty(coder: stream.stack.AnsCoder) -> None:
    """Refuses a stack that holds more than was read."""
    if not coder.is_empty():
        raise InputError("its symbols do not end where its bytes do")
