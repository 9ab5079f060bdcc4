"""Sums of products of integers, exact in float32 matrix products. Needs no torch.

numpy has no fast product of integer matrices, but one of float32. A float32 represents every integer up to 2^24. So a
convolution is split into groups of taps and channels whose partial sums all stay below this bound: each of them is
exact in any order, with or without fused multiply-adds. A float64, exact up to 2^53, adds the groups.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int]
Product = tuple[Place, slice, NDArray[np.float32]]
"""A tap's offset in rows and columns, a slice of input channels, and its weights [C_out, channels]."""

_EXACT = 1 << 24
"""A float32 represents all integers up to this one."""


def in_groups(weights: Mapping[Place, NDArray[np.int8]], least: int, most: int) -> list[list[Product]]:
    """Splits a convolution into groups of products, none of whose partial sums leaves the exact range of float32.

    Args:
        weights: [C_out, C_in] by their offset.
        least, most: limits of the inputs, with 0 between them.
    """
    groups: list[list[Product]] = []
    low = high = np.zeros(1, np.int64)
    for offset, weight in weights.items():
        for channels in _slices(weight, max(most, -least)):
            part = weight[:, channels]
            above = np.maximum(part, 0).sum(1, dtype=np.int64)
            below = np.minimum(part, 0).sum(1, dtype=np.int64)
            down, up = above * least + below * most, above * most + below * least
            if not groups or max((high + up).max(), -(low + down).min()) > _EXACT:
                groups.append([])
                low = high = np.zeros(1, np.int64)
            low, high = low + down, high + up
            groups[-1].append((offset, channels, np.ascontiguousarray(part, np.float32)))
    return groups


def _slices(weight: NDArray[np.int8], most: int) -> Iterator[slice]:
    """Slices of input channels that are each exact by themselves for inputs of at most this magnitude."""
    costs = most * np.abs(weight.astype(np.int32)).cumsum(1, dtype=np.int64)
    start, before = 0, np.zeros((len(weight), 1), np.int64)
    while start < costs.shape[1]:
        end = max(start + 1, int(((costs - before).max(0) <= _EXACT).sum()))
        yield slice(start, end)
        start, before = end, costs[:, end - 1 : end]


def sums_of(
    padded: NDArray[np.float32], groups: list[list[Product]], start: int, count: int, pitch: int
) -> NDArray[Any]:
    """The sums of a convolution [C_out, count], without bias, at `count` places of the padded input from `start` on."""
    shape = len(groups[0][0][2]), count
    total = np.empty(shape, np.float64)
    partial, one = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rank, group in enumerate(groups):
        for number, ((dy, dx), channels, weight) in enumerate(group):
            place = start + dy * pitch + dx
            np.matmul(weight, padded[channels, place : place + count], out=one if number else partial)
            if number:
                partial += one
        if len(groups) == 1:
            return partial
        np.add(total if rank else 0, partial, out=total)
    return total
