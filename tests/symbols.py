"""Symbols to code."""

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.tables import Tables


def drawn(tables: Tables, height: int, width: int, spread: float = 1) -> NDArray[np.int32]:
    """Symbols [M, height, width] distributed as the tables say, then spread: 1 leaves few outside, 5 many."""
    uniform = np.random.default_rng(height * width).integers(65536, size=(len(tables.cdfs), height, width))
    rows = zip(tables.cdfs, tables.lengths, tables.offsets, uniform, strict=True)
    symbols = [np.searchsorted(cdf[:n], u, side="right") - 1 + first for cdf, n, first, u in rows]
    return (np.stack(symbols) * spread).astype(np.int32)
