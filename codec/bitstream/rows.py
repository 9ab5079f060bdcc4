"""Rows of integer CDFs, and symbols coded with them: asymmetric numeral systems (Duda 2013). Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from codec.errors import InputError

PRECISION = 16
"""Bits of a CDF: every row ends at 2**16, as CompressAI's do."""

_CODER_PRECISION = 24
_NIBBLE = stream.model.Uniform(16)
_NIBBLE_BITS = 4
_SHORT = 11
"""In a table of up to so many intervals, a search from the start is faster (14 % of decoding time at 1.8 bpp)."""
_CHEAP = 1 << PRECISION
_BLOCK = 1 << 19
"""Symbols are prepared in blocks of rows of about this size: a large picture has many times more."""
_ESCAPES = 1 << 16
"""Symbols outside their tables are coded so many at a time."""
_MOST_NIBBLES = 9
"""Most nibbles of a symbol outside its table: its distance from the table is an int32, and twice that fits 36 bits."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Integer CDFs in the form of CompressAI's entropy models.

    Row r codes the symbol s as the interval s - offsets[r]; the last interval stands for all symbols outside the row.

    Attributes:
        offsets: int32 [R], the symbol of each row's first interval.
        lengths: int32 [R], number of used entries of each row: its intervals + 1.
        cdfs: int32 [R, L], each row rises from 0 to 65536; zeros follow.

    Raises:
        InputError: the arrays are not such rows.
    """

    offsets: NDArray[np.int32]
    lengths: NDArray[np.int32]
    cdfs: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Checks the arrays."""
        count, longest = self.cdfs.shape if self.cdfs.ndim == 2 else (0, 0)
        if any(array.dtype != np.int32 for array in (self.offsets, self.lengths, self.cdfs)):
            raise InputError("entropy tables of another type than int32 rows")
        if not {(count,)} == {self.offsets.shape, self.lengths.shape}:
            raise InputError("entropy tables whose arrays differ in their number of rows")
        if not count or self.lengths.min() < 3 or self.lengths.max() > longest:
            raise InputError("entropy tables with a row that is too short or too long")
        used = np.arange(longest) < self.lengths[:, None]
        rising = (np.diff(self.cdfs, axis=1) > 0) | ~used[:, 1:]
        last = self.cdfs[np.arange(count), self.lengths - 1]
        if not (rising.all() and (self.cdfs[:, 0] == 0).all() and (last == 1 << PRECISION).all()):
            raise InputError("entropy tables with a row that does not rise from 0 to 65536")

    def costs(self) -> NDArray[np.float64]:
        """Bits of each interval [R, L - 1]; zeros follow a row's last interval."""
        counts = np.maximum(np.diff(self.cdfs, axis=1), 0)
        used = counts > 0
        return np.where(used, PRECISION - np.log2(np.where(used, counts, 1)), 0.0)


class RowCoder:
    """Puts symbols on an ANS stack, and takes them off, with the models of CDF rows.

    What is pushed last is read first. From the top of a stack: the intervals of row 0, of row 1, ..; then, for each
    symbol that fell into a last interval, its number of nibbles; then those nibbles, the lowest of each symbol first.
    Their value is twice the distance above the table, or twice the distance below it less one, as in CompressAI's
    bypass.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        used = [cdf[:n] for cdf, n in zip(rows.cdfs, rows.lengths, strict=True)]
        # A lazy model codes the same. Decoding searches it from the start, not by bisection.
        self._decoders = [_exact_model(cdf, lazy=len(cdf) - 1 <= _SHORT) for cdf in used]
        self._encoders = [_exact_model(cdf, lazy=False) for cdf in used]
        self._least_bits = _least_bits(used)
        self._last = (rows.lengths - 2).astype(np.uint32)  # the interval of symbols that have none

    def fewest_bytes(self, positions: int) -> int:
        """A lower bound of the bytes of `positions` symbols of each row: the cost of the most probable symbols.

        The coder starts with state 0. In it, symbols of the first interval cost nothing, and up to 2^16 others cost
        little. The bound leaves out the former, and the last row whose most probable symbol is another one, since that
        row is coded first. Rounding costs less than 1/2^8 of the bits, except for 64 bits at the start.
        """
        live = self._least_bits[self._least_bits > 0]
        if not live.size:
            return 0
        return max(0, int(0.99 * (positions * live[:-1].sum() - _CHEAP * live.max()) - 64) // 8)

    def push(self, coder: stream.stack.AnsCoder, symbols: NDArray[np.int32]) -> None:
        """Pushes symbols [R, n], those of each row with its CDF."""
        count = symbols.shape[1]
        step = max(1, _BLOCK // count)
        blocks = [slice(first, first + step) for first in range(0, len(symbols), step)]
        outside = np.concatenate(
            [
                np.flatnonzero(self._index(symbols, block) >= self._last[block, None]) + block.start * count
                for block in blocks
            ]
        )
        self._push_outside(coder, symbols.ravel()[outside], outside // count)
        for block in reversed(blocks):
            index = np.minimum(self._index(symbols, block), self._last[block, None]).view(np.int32)
            for row, model in zip(reversed(index), reversed(self._encoders[block]), strict=True):
                coder.encode_reverse(row, model)

    def _index(self, symbols: NDArray[np.int32], block: slice) -> NDArray[np.uint32]:
        """Distances of symbols [R, n] from the first of their rows; below it they are large, since unsigned."""
        return (symbols[block] - self.rows.offsets[block, None]).view(np.uint32)

    def pop(self, coder: stream.stack.AnsCoder, count: int) -> NDArray[np.int32]:
        """Takes symbols [R, count] off.

        Raises:
            InputError: a symbol has more than 32 bits.
        """
        symbols = np.empty((len(self._decoders), count), np.int32)
        for row, model in zip(symbols, self._decoders, strict=True):
            row[:] = coder.decode(model, count)
        outside = np.flatnonzero(symbols.view(np.uint32) == self._last[:, None])
        symbols += self.rows.offsets[:, None]
        self._pop_outside(coder, symbols, outside, outside // count)
        return symbols

    def push_picked(self, coder: stream.stack.AnsCoder, symbols: NDArray[np.int32], picked: NDArray[np.uint8]) -> None:
        """Pushes symbols [n], each with the row that `picked` [n] names; grouped by row, in each in their order."""
        order, ends = _grouped(picked, len(self._encoders))
        symbols, row = symbols[order], picked[order]
        index = (symbols - self.rows.offsets[row]).view(np.uint32)
        outside = np.flatnonzero(index >= self._last[row])
        self._push_outside(coder, symbols[outside], row[outside])
        index[outside] = self._last[row[outside]]
        pieces = np.split(index.view(np.int32), ends[:-1])
        for piece, model in zip(reversed(pieces), reversed(self._encoders), strict=True):
            coder.encode_reverse(piece, model)

    def pop_picked(self, coder: stream.stack.AnsCoder, picked: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The inverse of `push_picked`; raises as `pop`."""
        order, ends = _grouped(picked, len(self._decoders))
        symbols = np.empty(len(order), np.int32)
        outside, start = [np.empty(0, np.int64)], 0
        for row in np.flatnonzero(np.diff(ends, prepend=0)):
            piece = symbols[start : ends[row]]
            piece[:] = coder.decode(self._decoders[row], len(piece))
            outside.append(start + np.flatnonzero(piece == self._last[row]))
            piece += self.rows.offsets[row]
            start = ends[row]
        places = np.concatenate(outside)
        self._pop_outside(coder, symbols, places, picked[order[places]])
        found = np.empty_like(symbols)
        found[order] = symbols
        return found

    def _push_outside(
        self, coder: stream.stack.AnsCoder, symbols: NDArray[np.int32], row: NDArray[np.integer[Any]]
    ) -> None:
        """Pushes the distances of symbols [n] that fall into the last intervals of these rows."""
        if symbols.size:
            first, last = self._table_ends(row)
            _push_distances(coder, _distances(symbols - first, last))

    def _pop_outside(
        self,
        coder: stream.stack.AnsCoder,
        symbols: NDArray[np.int32],
        outside: NDArray[np.int64],
        row: NDArray[np.integer[Any]],
    ) -> None:
        """Replaces the symbols that fell into a last interval, at the places `outside`, of these rows."""
        if not outside.size:
            return
        first, last = self._table_ends(row)
        distances = _pop_distances(coder, outside.size)
        half = distances >> 1
        found = np.where(distances & 1, first - 1 - half, first + last + half)
        if found.min() < -(1 << 31) or found.max() >= 1 << 31:
            raise InputError("it holds a symbol of more than 32 bits")
        symbols.ravel()[outside] = found

    def _table_ends(self, row: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For rows: the first symbol, and the number of the last interval."""
        return self.rows.offsets[row].astype(np.int64), self._last[row].astype(np.int64)


def bits(rows: Rows, symbols: NDArray[np.int32], picked: NDArray[np.integer[Any]]) -> float:
    """The bits of symbols [n] with the rows that `picked` [n] names, escapes included, from the integer tables."""
    costs = rows.costs()
    last = rows.lengths[picked].astype(np.int64) - 2
    beyond = symbols - rows.offsets[picked].astype(np.int64)
    outside = (beyond < 0) | (beyond >= last)
    intervals = np.where(outside, last, beyond) + picked.astype(np.int64) * costs.shape[1]
    counts = np.bincount(intervals, minlength=costs.size)
    used = _nibbles(_distances(beyond[outside], last[outside]))[1]
    return float(counts @ costs.ravel()) + _NIBBLE_BITS * float(len(used) + used.sum())


def bits_by_row(rows: Rows, symbols: NDArray[np.int32]) -> float:
    """The bits of symbols [R, ..], those of each row with its CDF."""
    values, total = symbols.reshape(len(symbols), -1), 0.0
    step = max(1, _BLOCK // values.shape[1])
    for first in range(0, len(values), step):
        some = values[first : first + step]
        total += bits(rows, some.ravel(), np.repeat(np.arange(first, first + len(some)), some.shape[1]))
    return total


def _grouped(picked: NDArray[np.uint8], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of symbols in which those of row 0 come first, then those of row 1, ..; and each row's end in it."""
    return np.argsort(picked, kind="stable"), np.cumsum(np.bincount(picked, minlength=rows))


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


def _distances(beyond: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers that stand for symbols outside their tables, from their intervals as if the tables went on."""
    return np.where(beyond < 0, -2 * beyond - 1, 2 * (beyond - last))


def _nibbles(distances: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Distances, shifted by 0, 4, .. bits [n, 9]: the low four bits are its nibbles. And which nibbles are used."""
    nibbles = distances[:, None] >> 4 * np.arange(_MOST_NIBBLES)
    return nibbles, nibbles != 0


def _push_distances(coder: stream.stack.AnsCoder, distances: NDArray[np.int64]) -> None:
    """All nibbles, then how many each has, some at a time: the nibbles take nine times the memory of the distances."""
    lengths = np.empty(len(distances), np.int32)
    for first in reversed(range(0, len(distances), _ESCAPES)):
        some = slice(first, first + _ESCAPES)
        nibbles, used = _nibbles(distances[some])
        coder.encode_reverse((nibbles[used] & 15).astype(np.int32), _NIBBLE)
        lengths[some] = used.sum(1)
    coder.encode_reverse(lengths, _NIBBLE)


def _pop_distances(coder: stream.stack.AnsCoder, count: int) -> NDArray[np.int64]:
    lengths = coder.decode(_NIBBLE, count)
    if lengths.max() > _MOST_NIBBLES:
        raise InputError("it holds a symbol of more than 32 bits")
    distances = np.empty(count, np.int64)
    for first in range(0, count, _ESCAPES):
        part = lengths[first : first + _ESCAPES]
        used = np.arange(_MOST_NIBBLES) < part[:, None]
        nibbles = np.zeros(used.shape, np.int64)
        nibbles[used] = coder.decode(_NIBBLE, int(part.sum()))
        distances[first : first + _ESCAPES] = (nibbles << 4 * np.arange(_MOST_NIBBLES)).sum(1)
    return distances
