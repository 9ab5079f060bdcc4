"""Entropy coder of the codecs with a hyperprior: z tells which Gaussian codes each value of y. Needs no torch."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from codec.bitstream.coder import check_empty, round_in_blocks, rounded, stack_bytes, stack_of
from codec.bitstream.gains import Scaling
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.integer import MEAN_BITS, UPSAMPLING, Span
from codec.bitstream.rows import RowCoder, bits, bits_by_row
from codec.errors import InputError

FIFTH = 1 / 5
"""Of a symbol of z: what an int8 h_a of a codec with several rates gives, since these are scaled and rounded again.

It is an odd part, so that rounding gives the symbols themselves, without ties."""
_SYMBOLS_AT_ONCE = 1 << 21
"""Symbols of y in a piece, at most; part of the file's format."""
_MOST_SYMBOL = (1 << 24) - 1
"""With means, a decoded value is symbol * 2^6 + mean, and must fit 32 bits."""


class HyperCoder:
    """Codes the symbols of z, then those of y, piece by piece.

    A piece is a window of z, and of y the values that h_s computes from it. From the top of the stack: z, as
    `RowCoder.push` describes it; then each piece of y, as `RowCoder.push_picked` does, in the order of `pieces`.

    Args:
        tables: the tables.
        of_y, of_z: the gains of y and z at a rate; None: the codec has one rate.

    Attributes:
        tables: the tables.
        medians: zero, float32 [M, 1, 1]; y_hat is `decode(..) * unit + medians`.
        unit: of decoded values: 1, or with means or gains 2^-6.
        channels_of_z: N.
    """

    def __init__(self, tables: HyperTables, of_y: Scaling | None = None, of_z: Scaling | None = None) -> None:
        self.tables = tables
        self.medians = np.zeros((tables.channels, 1, 1), np.float32)
        self.unit = 1.0 if of_y is None and not tables.network.has_means else 2.0**-MEAN_BITS
        self.channels_of_z = len(tables.z.offsets)
        self._of_y, self._of_z = of_y, of_z

    @cached_property
    def _z(self) -> RowCoder:
        return RowCoder(self.tables.z)

    @cached_property
    def _y(self) -> RowCoder:
        return RowCoder(self.tables.y)

    def fewest_bytes(self, height: int, width: int) -> int:
        """A lower bound of the payload's length for y of [M, height, width]: the bytes of z."""
        rows, columns = z_size(height, width)
        return self._z.fewest_bytes(rows * columns)

    def encode(self, symbols: NDArray[np.int32], z: NDArray[np.int32] | None = None) -> bytes:
        """The payload of symbols [M, h, w] and of z [N, ceil(h / 4), ceil(w / 4)].

        Raises:
            InputError: around a mean or with gains, a symbol is too large.
        """
        z = self._checked(symbols, z)
        if self._of_y is not None:
            self._of_y.check(symbols)
        if self.tables.network.has_means and np.abs(symbols).max(initial=0) > _MOST_SYMBOL:
            raise InputError("its symbols have more than 25 bits; the codec's training has diverged")
        coder = stream.stack.AnsCoder()
        for rows, columns in reversed(list(pieces(*symbols.shape))):
            place, indexes, _ = self._context(z, rows, columns, symbols.shape[1:])
            self._y.push_picked(coder, symbols[:, *place].ravel(), indexes.ravel())
        self._z.push(coder, z.reshape(len(z), -1))
        return stack_bytes(coder)

    def decode(self, payload: bytes, height: int, width: int) -> NDArray[np.int32]:
        """y_hat / unit, int32 [M, height, width]: symbols, or with means or gains symbol / gain * 2^6 + mean.

        Raises:
            InputError: the payload does not end where the symbols do, or holds a symbol that no encoder writes.
        """
        coder = stack_of(payload)
        size = z_size(height, width)
        z = self._z.pop(coder, size[0] * size[1]).reshape(-1, *size)
        found = np.empty((self.tables.channels, height, width), np.int32)
        for rows, columns in pieces(*found.shape):
            place, indexes, means = self._context(z, rows, columns, (height, width))
            symbols = self._y.pop_picked(coder, indexes.ravel()).reshape(indexes.shape)
            if self._of_y is not None:
                self._of_y.decoded(symbols)
            elif means is not None:
                if max(symbols.max(), -int(symbols.min())) > _MOST_SYMBOL:
                    raise InputError("it holds a symbol of more than 25 bits")
                symbols <<= MEAN_BITS
            if means is not None:
                symbols += means
            found[:, *place] = symbols
        check_empty(coder)
        return found

    def round(self, y: NDArray[np.float32], z: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The symbols of y [M, h, w] for these symbols of z: round(gain * (y - mean)), half to even; see `rounded`."""
        z = self._checked(y, z)
        gain = None if self._of_y is None else self._of_y.gain
        if not self.tables.network.has_means:
            return round_in_blocks(y, None, gain)
        symbols = np.empty(y.shape, np.int32)
        for rows, columns in pieces(*y.shape):
            place, _, means = self._context(z, rows, columns, y.shape[1:])
            assert means is not None
            centred = y[:, *place] - means.astype(np.float32) * np.float32(self.unit)
            symbols[:, *place] = rounded(centred if gain is None else centred * gain)
        return symbols

    def round_z(self, z: NDArray[np.float32]) -> NDArray[np.int32]:
        """The symbols of z less its medians, [N, ..]: round(gain * z)."""
        return rounded(z if self._of_z is None else z * self._of_z.gain)

    def bits(self, symbols: NDArray[np.int32], z: NDArray[np.int32] | None = None) -> float:
        """The bits of symbols [M, h, w] and of z by the tables, without the few that a file has more."""
        z = self._checked(symbols, z)
        return bits_by_row(self.tables.z, z) + self.bits_of_y(symbols, z)

    def bits_of_y(self, symbols: NDArray[np.int32], z: NDArray[np.int32]) -> float:
        """The bits of symbols [M, h, w] by the tables for these symbols of z."""
        z = self._checked(symbols, z)
        total = 0.0
        for rows, columns in pieces(*symbols.shape):
            place, indexes, _ = self._context(z, rows, columns, symbols.shape[1:])
            total += bits(self.tables.y, symbols[:, *place].ravel(), indexes.ravel())
        return total

    def context(
        self, z: NDArray[np.int32], height: int, width: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
        """The rows of the tables, uint8 [M, height, width], and the means in units of `unit`, or None."""
        size = z_size(height, width)
        _, indexes, means = self._context(z, (0, size[0]), (0, size[1]), (height, width))
        return indexes, means

    def _context(
        self, z: NDArray[np.int32], rows: Span, columns: Span, size: tuple[int, ...]
    ) -> tuple[tuple[slice, slice], NDArray[np.uint8], NDArray[np.int32] | None]:
        """Where a piece lies in y of this size, and its indexes and means."""
        top, bottom, left, right = (UPSAMPLING * each for each in (*rows, *columns))
        place = slice(top, min(bottom, size[0])), slice(left, min(right, size[1]))
        used = slice(place[0].stop - top), slice(place[1].stop - left)
        indexes, means = self.tables.network.context(z, rows, columns, self._of_z, self._of_y)
        return place, indexes[:, *used], None if means is None else means[:, *used]

    def _checked(self, y: NDArray[np.generic], z: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Returns z; a caller that gives none, or one of another size, has a bug."""
        wanted = (len(self.tables.z.offsets), *z_size(*y.shape[1:]))
        if z is None or z.shape != wanted or len(y) != self.tables.channels:
            raise ValueError(f"y of shape {y.shape} needs z of shape {wanted}, not {None if z is None else z.shape}")
        return z


def z_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of z for those of y."""
    return -(-height // UPSAMPLING), -(-width // UPSAMPLING)


def pieces(channels: int, height: int, width: int) -> Iterator[tuple[Span, Span]]:
    """Windows of z, rows and columns, that cover y of [channels, height, width]: row by row, from left to right.

    A window has as many whole rows as give at most 2^21 values of y; of a row that gives more, as many columns.
    """
    rows, columns = z_size(height, width)
    per_place = channels * UPSAMPLING**2
    across = min(columns, max(1, _SYMBOLS_AT_ONCE // per_place))
    down = max(1, _SYMBOLS_AT_ONCE // (per_place * across))
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            yield (top, min(top + down, rows)), (left, min(left + across, columns))
