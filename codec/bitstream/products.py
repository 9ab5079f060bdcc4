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
    """Splits a convolution into groups of products, none of whose partial sums leaves the exact range of float32."""
    groups: list[list[Product]] = []
    low = high = np.zeros(1)
    for offset, weight in weights.items():
        for channels in _slices(weight, least, most):
            part = weight[:, channels].astype(np.float64)
            ends = np.stack([part * least, part * most])
            down, up = ends.min(0).sum(1), ends.max(0).sum(1)
            if not groups or max((high + up).max(), -(low + down).min()) > _EXACT:
                groups.append([])
                low = high = np.zeros(1)
            low, high = low + down, high + up
            groups[-1].append((offset, channels, np.ascontiguousarray(part, np.float32)))
    return groups


def _slices(weight: NDArray[np.int8], least: int, most: int) -> Iterator[slice]:
    """Slices of input channels that are each exact by themselves."""
    cost = np.abs(weight.astype(np.int64)) * max(most, -least)
    start = 0
    for end in range(1, cost.shape[1] + 1):
        if end == cost.shape[1] or cost[:, start : end + 1].sum(1).max() > _EXACT:
            yield slice(start, end)
            start = end


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
