"""Codecs with a hyperprior whose random weights give scales and means that differ from place to place."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.everywhere import lively
from codec.bitstream.hyper_coder import HyperCoder, coder_of, z_size
from codec.bitstream.hyper_tables import HyperTables, hyper_tables_of_state
from codec.bitstream.rows import Rows
from codec.description.file import Arrays
from codec.network.arrays import as_arrays
from codec.network.hyperprior import HyperCodec

Symbols = NDArray[np.int32]

HYPER = ("bmshj2018_hyperprior", "mbt2018_mean")


def hyper_codec(arch: str, n: int = 8, m: int = 12) -> HyperCodec:
    """A codec in eval mode, with tables."""
    codec = lively(arch, n, m)
    assert isinstance(codec, HyperCodec)
    return codec


def arrays_of(codec: HyperCodec) -> Arrays:
    """What a checkpoint of the codec holds: its weights and tables, and h_s in integers."""
    return as_arrays(codec.state_dict()) | codec.coding_arrays()


def hyper_tables(arch: str) -> HyperTables:
    """The tables of `hyper_codec`."""
    return hyper_tables_of_state(arrays_of(hyper_codec(arch)), {"name": "gdn"})


def drawn_z(tables: HyperTables, height: int, width: int) -> Symbols:
    """Symbols of z for y of this size, as the tables distribute them."""
    random = np.random.default_rng(height * width)
    every = np.repeat(np.arange(len(tables.z.offsets)), math.prod(z_size(height, width)))
    return _drawn(tables.z, every, random).reshape(-1, *z_size(height, width))


def drawn_hyper(tables: HyperTables, height: int, width: int, spread: float = 1) -> tuple[Symbols, Symbols]:
    """Symbols of y [M, height, width] and z as the tables distribute them; those of y spread: 5 leaves many outside."""
    z = drawn_z(tables, height, width)
    coder = coder_of(tables)
    assert isinstance(coder, HyperCoder)
    picked, _ = coder.context(z, height, width)
    symbols = _drawn(tables.y, picked.ravel(), np.random.default_rng(height + width))
    return (symbols.reshape(picked.shape) * spread).astype(np.int32), z


def _drawn(rows: Rows, picked: NDArray[np.integer[Any]], random: np.random.Generator) -> Symbols:
    symbols = np.empty(len(picked), np.int32)
    for row in np.unique(picked):
        places = picked == row
        uniform = random.integers(65536, size=int(places.sum()))
        cdf = rows.cdfs[row, : rows.lengths[row]]
        symbols[places] = np.searchsorted(cdf, uniform, side="right") - 1 + rows.offsets[row]
    return symbols
