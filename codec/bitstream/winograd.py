"""3x3 convolutions of integers by Winograd's method, exact in float32 matrix products. Needs no torch.

numpy has no fast product of integer matrices, but one of float32, which represents every integer up to 2^24. Winograd's
F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308) computes 2x2 outputs with 16 products for each pair of channels
instead of 36. Its sums and differences of inputs, and of weights, are integers as well if nothing is halved: then it
gives 4 times the convolution.

A matrix product adds products w_c v_c over channels c. By the inequality of Cauchy and Schwarz no partial sum, of any
channels in any order, is larger than |w| |v|, the product of their Euclidean norms. Where this bound, with the norms
of the picture at hand, is at most 2^24, float32 is exact; elsewhere float64, exact up to 2^53, takes its place.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXACT = 1 << 24
"""A float32 represents all integers up to this one."""
_MOST_PRODUCT = ((1 << 31) - 1) // 9
"""An output is a sum of 9 products at most: while they are within this limit, it fits int32."""
_ROUNDED = 1.001
"""Covers the rounding of a norm, less than 2^-24 of it for each channel."""
_AT_ONCE = 1 << 19
"""Results of a matrix product: so many tiles are computed at once."""

# From four neighbours d0..d3 in a row or a column: d0 - d2, d1 + d2, d2 - d1, d1 - d3. With the four products m0..m3
# of these by `_transformed` weights, the two outputs, times 2, are m0 + m1 + m2 and m1 - m2 - m3.
_PAIRS: tuple[tuple[int, int, Any], ...] = (
    (0, 2, np.subtract),
    (1, 2, np.add),
    (2, 1, np.subtract),
    (1, 3, np.subtract),
)


class Winograd:
    """Convolutions of 3x3, stride 1, with the same input: one, or one for each parity of the rows and columns.

    Args:
        kernels: int8 [P, P, C_out, C_in, 3, 3]: P is 1, or 2: then those of odd rows have zeros as their first row, and
            those of odd columns as their first column.
    """

    def __init__(self, kernels: NDArray[np.int8]) -> None:
        self._phases, (self._outputs, self._inputs) = len(kernels), kernels.shape[2:4]
        rows = _transformed(kernels.astype(np.float32).swapaxes(4, 5))
        # For odd rows the first of four is zero, and so for odd columns.
        self._weights = [
            [
                np.ascontiguousarray(cell[: None if a else 1, : None if b else 1]).reshape(-1, self._inputs)
                for b, cell in enumerate(_transformed(row))
            ]
            for a, row in enumerate(rows)
        ]
        self._norms = [[_norm(weight.T) for weight in row] for row in self._weights]

    def sums(self, x: NDArray[np.float32], start: int, rows: int) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The convolutions, without bias, in bands of two rows.

        Args:
            x: [C_in, h, w], integers within +-65535; it borders on zeros.
            start, rows: the first row, and how many; they may end beyond x.

        Yields:
            Which bands of two rows; and 4 times their sums, int32 or float64 [2, 2, P, P, C_out, bands, columns]: by
            row and column in a tile, parity of row and column, channel, band, column of tiles. The last column is no
            result.
        """
        bands, pitch = -(-rows // 2), -(-x.shape[2] // 2) + 1
        planes = _planes(x, start, bands, pitch)
        largest = 4 * _norm(x.reshape(len(x), -1)) * max(map(max, self._norms))
        kind = np.int32 if largest <= _MOST_PRODUCT else np.float64
        step = max(1, _AT_ONCE // (self._phases**2 * self._outputs * pitch))
        for top in range(0, bands, step):
            band = slice(top, min(top + step, bands))
            seen = planes[..., top * pitch : (band.stop + 1) * pitch + 1]
            total = self._tiles(seen, (band.stop - top) * pitch, pitch, np.dtype(kind))
            yield band, total.reshape(*total.shape[:-1], -1, pitch)

    def _tiles(self, planes: NDArray[np.float32], count: int, pitch: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """4 times the sums of tiles, [2, 2, P, P, C_out, count]."""
        shape = self._phases, self._phases, self._outputs, count
        total = np.zeros((2, 2, *shape), kind)
        row, scratch = np.empty((2, self._inputs, count + 1), np.float32), np.empty(shape, np.float32)
        value, cells = np.empty((self._inputs, count), np.float32), [np.empty(shape, kind) for _ in range(5)]
        for a, (i, j, combine) in enumerate(_PAIRS):
            combine(*(planes[k % 2, ..., k // 2 * pitch :][..., : count + 1] for k in (i, j)), out=row)
            found = []
            for b, (k, m, combine_columns) in enumerate(_PAIRS):
                combine_columns(*(row[each % 2, :, each // 2 :][:, :count] for each in (k, m)), out=value)
                cell = cells[b][: None if a else 1, : None if b else 1]
                _multiply(self._weights[a][b], value, self._norms[a][b], scratch, cell)
                found.append(cell)
            for column, part in enumerate(_outputs(found, cells[4][: len(found[1])])):
                used = total[:, column, : len(part)]
                if a < 3:
                    used[0] += part
                if a == 1:
                    used[1] += part
                if a > 1:
                    used[1] -= part
        return total


def _transformed(kernels: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Four combinations of the three numbers along the last axis."""
    first, middle, last = kernels[..., 0], kernels[..., 1], kernels[..., 2]
    return 2 * first, first + middle + last, first - middle + last, 2 * last


def _planes(x: NDArray[np.float32], start: int, bands: int, pitch: int) -> NDArray[np.float32]:
    """The input from row start - 1 on, by parity of row and column: [2, 2, C_in, (bands + 1) * pitch + 1].

    Each row of a plane ends with a column that belongs to no tile, or to the right border. So a shifted row, or column,
    of all tiles is a contiguous piece, also of several rows.
    """
    channels, height, width = x.shape
    first, end = max(0, start - 1), min(height, start + 2 * bands + 1)
    padded = np.zeros((channels, 2 * (bands + 1), 2 * pitch), np.float32)
    padded[:, first - start + 1 : end - start + 1, 1 : width + 1] = x[:, first:end]
    planes = np.zeros((2, 2, channels, (bands + 1) * pitch + 1), np.float32)
    by_parity = planes[..., :-1].reshape(2, 2, channels, bands + 1, pitch)
    for row, column in np.ndindex(2, 2):
        by_parity[row, column] = padded[:, row::2, column::2]
    return planes


def _norm(columns: NDArray[np.float32]) -> float:
    """The largest Euclidean norm of a column, or a little more."""
    largest: float = np.einsum("cn,cn->n", columns, columns).max()
    return _ROUNDED * math.sqrt(largest)


def _multiply(
    weight: NDArray[np.float32],
    value: NDArray[np.float32],
    norm: float,
    scratch: NDArray[np.float32],
    result: NDArray[Any],
) -> None:
    """Writes weight @ value to `result`; its type, int32 or float64, represents all results."""
    if norm * _norm(value) <= _EXACT:
        product: NDArray[Any] = scratch.reshape(-1, value.shape[1])[: len(weight)]
        np.matmul(weight, value, out=product)
    else:
        product = weight.astype(np.float64) @ value.astype(np.float64)
    result[:] = product.reshape(result.shape)


def _outputs(products: list[NDArray[Any]], scratch: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """m0 + m1 + m2 and m1 - m2 - m3, in `scratch` and in m1; m0 may lack odd columns, where it is zero."""
    m0, m1, m2, m3 = products
    np.add(m1, m2, out=scratch)
    scratch[:, : m0.shape[1]] += m0
    m1 -= m2
    m1 -= m3
    return scratch, m1
