"""Codecs with a hyperprior whose random weights give scales and means that differ from place to place."""

import numpy as np
import torch
from numpy.typing import NDArray

from codec.bitstream.hyper_coder import coder_of, z_size
from codec.bitstream.hyper_tables import PREFIX, HyperTables, hyper_tables_of_state, network_arrays, source
from codec.bitstream.rows import Rows
from codec.description.architecture import Architecture
from codec.description.file import Arrays
from codec.network.architectures import new_codec
from codec.network.hyperprior import HyperCodec
from codec.network.integer import integer_h_s
from codec.network.tables import as_arrays, with_tables

Symbols = NDArray[np.int32]

HYPER = ("bmshj2018_hyperprior", "mbt2018_mean")


def lively(arch: str, n: int = 8, m: int = 12) -> HyperCodec:
    """A codec in eval mode, with the CDF tables of CompressAI's buffers."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(n, m, arch=arch))
    assert isinstance(codec, HyperCodec)
    with torch.no_grad():
        codec.entropy_bottleneck.matrices[0].add_(torch.linspace(0, 6, n)[:, None, None])
        codec.entropy_bottleneck.quantiles[:, 0] += torch.linspace(-1.3, 1.3, n)[:, None]
        last = codec.h_s[4]
        last.weight *= 30
        last.bias[:m] = torch.logspace(-1.5, 1.5, m)
        if codec.has_means:
            last.bias[m:] = torch.linspace(-40, 40, m)
    return with_tables(codec)


def arrays_of(codec: HyperCodec) -> Arrays:
    """What a checkpoint of the codec holds: its weights and tables, and h_s in integers."""
    scales = codec.gaussian_conditional.scale_table
    network = integer_h_s(codec.h_s, codec.entropy_bottleneck, scales, codec.has_means)
    arrays = as_arrays(codec.state_dict())
    return arrays | {PREFIX + name: array for name, array in network_arrays(network, source(arrays)).items()}


def hyper_tables(arch: str) -> HyperTables:
    """The tables of `lively`."""
    return hyper_tables_of_state(arrays_of(lively(arch)), {"name": "gdn"})


def drawn_z(tables: HyperTables, height: int, width: int) -> Symbols:
    """Symbols of z for y of this size, as the tables distribute them."""
    random = np.random.default_rng(height * width)
    every = np.repeat(np.arange(len(tables.z.offsets)), np.prod(z_size(height, width)))
    return _drawn(tables.z, every, random).reshape(-1, *z_size(height, width))


def drawn_hyper(tables: HyperTables, height: int, width: int, spread: float = 1) -> tuple[Symbols, Symbols]:
    """Symbols of y [M, height, width] and z as the tables distribute them; those of y spread: 5 leaves many outside."""
    z = drawn_z(tables, height, width)
    picked, _ = coder_of(tables).context(z, height, width)
    symbols = _drawn(tables.y, picked.ravel(), np.random.default_rng(height + width))
    return (symbols.reshape(picked.shape) * spread).astype(np.int32), z


def _drawn(rows: Rows, picked: NDArray[np.integer], random: np.random.Generator) -> Symbols:
    symbols = np.empty(len(picked), np.int32)
    for row in np.unique(picked):
        places = picked == row
        uniform = random.integers(65536, size=places.sum())
        cdf = rows.cdfs[row, : rows.lengths[row]]
        symbols[places] = np.searchsorted(cdf, uniform, side="right") - 1 + rows.offsets[row]
    return symbols
