"""Codecs with a hyperprior whose random weights give scales and means that differ from place to place."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.everywhere import lively
from codec.bitstream.hyper_tables import HyperTables, hyper_tables_of_state
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
    """What a checkpoint of the codec holds: its weights and tables, and the integer h_s."""
    return as_arrays(codec.state_dict()) | codec.coding_arrays()


def hyper_tables(arch: str) -> HyperTables:
    """The tables of `hyper_codec`."""
    return hyper_tables_of_state(arrays_of(hyper_codec(arch)), {"name": "gdn"})
