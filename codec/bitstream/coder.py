"""Entropy coder: asymmetric numeral systems (Duda 2013) with integer tables. Needs no torch."""

from collections.abc import Sequence

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from codec.bitstream.tables import PRECISION, Tables
from codec.errors import InputError

_CODER_PRECISION = 24
_NIBBLE = stream.model.Uniform(16)
_SHORT = 11
"""In a table of up to so many intervals, a search from the start is faster (14 % of decoding time at 1.8 bpp)."""
_CHEAP = 1 << PRECISION
_BLOCK = 2**21
"""Symbols are prepared for the coder in blocks of channels of about this size: a large picture has many times more."""
_MOST_NIBBLES = 9
"""Most nibbles of a symbol outside its table: its distance from the table is an int32, and twice that fits 36 bits."""


class Coder:
    """Codes symbols with a codec's tables.

    The payload is the stack of constriction's ANS coder (64-bit state, 32-bit words), little-endian, without the zero
    bytes at its end. From its top: the intervals of channel 0, of channel 1, .. in raster order; then, for each symbol
    that fell into a last interval, its number of nibbles; then those nibbles, the lowest of each symbol first. Their
    value is twice the distance above the table, or twice the distance below it less one, as in CompressAI's bypass.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        used = [cdf[:n] for cdf, n in zip(tables.cdfs, tables.lengths, strict=True)]
        # A lazy model codes the same. Decoding searches it from the start, not by bisection.
        self._decoders = [_exact_model(cdf, lazy=len(cdf) - 1 <= _SHORT) for cdf in used]
        self._encoders = [_exact_model(cdf, lazy=False) for cdf in used]
        self._least_bits = _least_bits(used)
        self._first = tables.offsets[:, None]
        self._last = (tables.lengths - 2).astype(np.uint32)[:, None]  # the interval of symbols that have none

    def fewest_bytes(self, positions: int) -> int:
        """A lower bound of the payload's length for M x `positions` symbols: the cost of the most probable symbols.

        The coder starts with state 0. In it, symbols of the first interval cost nothing, and up to 2^16 others cost
        little. The bound leaves out the former, and the last row whose most probable symbol is another one, since that
        row is coded first. Rounding costs less than 1/2^8 of the bits, except for 64 bits at the start.
        """
        live = self._least_bits[self._least_bits > 0]
        if not live.size:
            return 0
        return max(0, int(0.99 * (positions * live[:-1].sum() - _CHEAP * live.max()) - 64) // 8)

    def encode(self, symbols: NDArray[np.int32]) -> bytes:
        """The payload of symbols [M, h, w]."""
        rows = symbols.reshape(len(self._encoders), -1)
        pixels = rows.shape[1]
        step = max(1, _BLOCK // pixels)
        blocks = [slice(first, first + step) for first in range(0, len(rows), step)]
        outside = np.concatenate(
            [np.flatnonzero(self._index(rows, block) >= self._last[block]) + block.start * pixels for block in blocks]
        )
        coder = stream.stack.AnsCoder()
        if outside.size:
            first, last = self._table_ends(outside, pixels)
            beyond = symbols.ravel()[outside] - first
            _push_distances(coder, np.where(beyond < 0, -2 * beyond - 1, 2 * (beyond - last)))
        push = coder.encode_reverse
        for block in reversed(blocks):
            index = np.minimum(self._index(rows, block), self._last[block]).view(np.int32)
            for channel, model in zip(reversed(index), reversed(self._encoders[block]), strict=True):
                push(channel, model)
        words: NDArray[np.uint32] = coder.get_compressed()
        return words.astype("<u4", copy=False).tobytes().rstrip(b"\0")

    def decode(self, payload: bytes, height: int, width: int) -> NDArray[np.int32]:
        """Symbols int32 [M, height, width].

        Raises:
            InputError: the payload does not end where the symbols do.
        """
        if payload.endswith(b"\0"):
            raise InputError("its last byte is zero, which is never written")
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        coder = stream.stack.AnsCoder(words)
        symbols = np.empty((len(self._decoders), height * width), np.int32)
        for row, model in zip(symbols, self._decoders, strict=True):
            row[:] = coder.decode(model, height * width)
        outside = np.flatnonzero(symbols.view(np.uint32) == self._last)
        symbols += self._first
        if outside.size:
            first, last = self._table_ends(outside, height * width)
            distances = _pop_distances(coder, outside.size)
            half = distances >> 1
            found = np.where(distances & 1, first - 1 - half, first + last + half)
            if found.min() < -(1 << 31) or found.max() >= 1 << 31:
                raise InputError("it holds a symbol of more than 32 bits")
            symbols.ravel()[outside] = found
        if not coder.is_empty():
            raise InputError("its symbols do not end where its bytes do")
        return symbols.reshape(-1, height, width)

    def _index(self, rows: NDArray[np.int32], block: slice) -> NDArray[np.uint32]:
        """Distances of symbols [M, h * w] from the first of their tables; below it they are large, being unsigned."""
        return (rows[block] - self._first[block]).view(np.uint32)

    def _table_ends(self, places: NDArray[np.int64], pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For places in [M, h, w]: the first symbol of their table, and the number of its last interval."""
        channels = places // pixels
        return self.tables.offsets[channels].astype(np.int64), self.tables.lengths[channels].astype(np.int64) - 2


def _exact_model(cdf: NDArray[np.int32], lazy: bool) -> stream.model.Categorical:
    """A model whose cumulative frequencies are exactly the table's, scaled from 16 to 24 bits.

    From n weights, constriction's fast quantization takes the cumulative frequency of interval i to be
    i + floor(scale * (sum of the weights before i)), scale = (2**24 - n) / (sum of all weights). The weights
    256 * count - 1 add up to 2**24 - n, so the scale is 1 and the frequency is 256 * cdf[i]. Every intermediate number
    is an integer under 2**53, so floats represent it exactly on every machine.
    """
    weights = (np.diff(cdf) << (_CODER_PRECISION - PRECISION)) - 1
    return stream.model.Categorical(weights.astype(np.float64), lazy=lazy, perfect=False)


def _least_bits(cdfs: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """The bits of each row's most probable interval; 0 where the most probable symbol is the first."""
    counts = [np.diff(cdf) for cdf in cdfs]
    return np.array([0.0 if each[:-1].argmax() == 0 else PRECISION - np.log2(each.max()) for each in counts])


def _push_distances(coder: stream.stack.AnsCoder, distances: NDArray[np.int64]) -> None:
    nibbles = distances[:, None] >> 4 * np.arange(_MOST_NIBBLES)
    used = nibbles != 0
    coder.encode_reverse((nibbles[used] & 15).astype(np.int32), _NIBBLE)
    coder.encode_reverse(used.sum(1, dtype=np.int32), _NIBBLE)


def _pop_distances(coder: stream.stack.AnsCoder, count: int) -> NDArray[np.int64]:
    lengths = coder.decode(_NIBBLE, count)
    if lengths.max() > _MOST_NIBBLES:
        raise InputError("it holds a symbol of more than 32 bits")
    used = np.arange(_MOST_NIBBLES) < lengths[:, None]
    nibbles = np.zeros(used.shape, np.int64)
    nibbles[used] = coder.decode(_NIBBLE, int(lengths.sum()))
    distances: NDArray[np.int64] = (nibbles << 4 * np.arange(_MOST_NIBBLES)).sum(1)
    return distances
