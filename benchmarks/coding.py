"""`python -m benchmarks.coding`: symbols to bytes and back, by our coder and by CompressAI's; with a hyperprior too.

The bars are for one core: set OMP_NUM_THREADS=1.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from compressai.ans import RansDecoder, RansEncoder
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.everywhere import lively
from benchmarks.harness import Row, alternate, publish
from codec.bitstream.coder import Coder
from codec.bitstream.hyper_coder import HyperCoder, z_size
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.rate_coder import coder_of
from codec.bitstream.rows import Rows
from codec.bitstream.tables import Tables
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import Architecture
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import tables_of, with_tables

Symbols = NDArray[np.int32]

SHAPE = (32, 48)
"""Of y, for a picture of 768x512."""
WIDEST = 2
"""Scale of the widest channel of y in a codec with a hyperprior: for about as many bits as the factorized codec."""
PICTURES = 4
"""Coded in a row, as a folder's are, by each side in turn."""


def quality_8() -> Codec:
    """Quality 8's entropy model, its densities from wide to narrow so that a file has the 1.8 bpp it has on Kodak."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, zoo_widths(8)[1]))
    with torch.no_grad():
        codec.entropy_bottleneck.matrices[0].add_(torch.linspace(0, 22, codec.M)[:, None, None])
    return with_tables(codec)


def drawn(tables: Tables, seed: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.int32]:
    """Symbols int32 [M, *shape] as the tables distribute them."""
    uniform = np.random.default_rng(seed).integers(65536, size=(len(tables.cdfs), *shape))
    rows = zip(tables.cdfs, tables.lengths, tables.offsets, uniform, strict=True)
    return np.stack(
        [np.searchsorted(cdf[:n], u, side="right") - 1 + first for cdf, n, first, u in rows], dtype=np.int32
    )


def drawn_z(tables: HyperTables, height: int, width: int) -> NDArray[np.int32]:
    """Symbols of z for y of this size, as the tables distribute them."""
    random = np.random.default_rng(height * width)
    every = np.repeat(np.arange(len(tables.z.offsets)), math.prod(z_size(height, width)))
    return _drawn(tables.z, every, random).reshape(-1, *z_size(height, width))


def drawn_hyper(
    tables: HyperTables, height: int, width: int, spread: float = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Symbols of y [M, height, width] and z as the tables distribute them; those of y spread: 5 leaves many outside."""
    z = drawn_z(tables, height, width)
    coder = coder_of(tables)
    assert isinstance(coder, HyperCoder)
    picked, _ = coder.context(z, height, width)
    symbols = _drawn(tables.y, picked.ravel(), np.random.default_rng(height + width))
    return (symbols.reshape(picked.shape) * spread).astype(np.int32), z


def _drawn(rows: Rows, picked: NDArray[np.integer[Any]], random: np.random.Generator) -> NDArray[np.int32]:
    symbols = np.empty(len(picked), np.int32)
    for row in np.unique(picked):
        places = picked == row
        uniform = random.integers(65536, size=int(places.sum()))
        cdf = rows.cdfs[row, : rows.lengths[row]]
        symbols[places] = np.searchsorted(cdf, uniform, side="right") - 1 + rows.offsets[row]
    return symbols


def entropy_paths(factorized: Callable[[], Any]) -> Iterator[Row]:
    """Decoding y and z of a codec with a hyperprior, the integer h_s included.

    Args:
        factorized: decodes as many pictures of the factorized codec, at about the same bits.
    """
    for arch, at_most in (("bmshj2018_hyperprior", 4), ("mbt2018_mean", None)):
        coder = coder_of(tables_of(lively(arch, *zoo_widths(8), widest=WIDEST)))
        assert isinstance(coder, HyperCoder)
        symbols, z = drawn_hyper(coder.tables, *SHAPE)
        payload = coder.encode(symbols, z)
        sides: dict[str, Callable[[], Any]] = {
            "decoding": partial(coder.decode, payload, *SHAPE),
            "h_s of it": partial(coder.context, z, *SHAPE),
            "encoding": partial(coder.encode, symbols, z),
        }
        found = alternate({**sides, "factorized": factorized}, 21, warmup=2)
        found["factorized"] /= PICTURES
        shown = {f"{side}, ms a picture": 1e3 * figure for side, figure in found.items()}
        note = f"{8 * len(payload) / (256 * SHAPE[0] * SHAPE[1]):.2f} bpp, N=192, M=320"
        what = f"{arch}: decoding z and y of 768x512 pixels, with the integer h_s"
        times = found["decoding"] / found["factorized"]
        yield Row(f"{what}, over the factorized codec", times, "x", None, at_most, shown, note)
        yield Row(what, 1e3 * found["decoding"], "ms", at_most=150)


def main() -> None:
    """Symbols to bytes and back, as CompressAI's `EntropyModel.compress` and `decompress` call its coder."""
    bottleneck = quality_8().entropy_bottleneck
    tables = (bottleneck._quantized_cdf, bottleneck._cdf_length.reshape(-1).int(), bottleneck._offset.reshape(-1).int())
    tables_of_8 = tables_of(quality_8())
    assert isinstance(tables_of_8, Tables)
    coder = Coder(tables_of_8)
    pictures = [drawn(coder.tables, seed) for seed in range(PICTURES)]
    tensors = [torch.from_numpy(symbols) for symbols in pictures]
    indexes = torch.arange(len(pictures[0]))[:, None, None].expand(tensors[0].shape).int()

    def lists() -> list[list[int]]:
        return [table.tolist() for table in (indexes.reshape(-1), *tables)]

    def their_encode() -> list[bytes]:
        return [RansEncoder().encode_with_indexes(symbols.reshape(-1).tolist(), *lists()) for symbols in tensors]

    def their_decode() -> list[Tensor]:
        values = [RansDecoder().decode_with_indexes(payload, *lists()) for payload in theirs]
        return [torch.tensor(value, dtype=torch.int32).reshape(indexes.shape) for value in values]

    def encode() -> list[bytes]:
        return [coder.encode(symbols) for symbols in pictures]

    def decode() -> list[NDArray[np.int32]]:
        return [coder.decode(payload, *SHAPE) for payload in ours]

    ours, theirs = encode(), their_encode()
    for symbols, mine, their in zip(pictures, decode(), their_decode(), strict=True):
        assert np.array_equal(mine, symbols)
        assert np.array_equal(their.numpy(), symbols)
    encoding = alternate({"ours": encode, "CompressAI's": their_encode}, rounds=41, warmup=2)
    decoding = alternate({"ours": decode, "CompressAI's": their_decode}, 41, warmup=2)
    size, lengths = f"y of {'x'.join(map(str, indexes.shape))}", [sum(map(len, files)) for files in (ours, theirs)]
    rows = [
        Row(
            f"{what} {size}, against CompressAI's coder",
            seconds["CompressAI's"] / seconds["ours"],
            "x",
            at_least=bar,
            sides={f"{side}, ms a picture": 1e3 * figure / PICTURES for side, figure in seconds.items()},
            note=f"{8 * lengths[0] / (256 * PICTURES * SHAPE[0] * SHAPE[1]):.2f} bpp",
        )
        for what, seconds, bar in (("encoding", encoding, 8), ("decoding", decoding, 5))
    ]
    sides = {"ours, bytes": float(lengths[0]), "CompressAI's, bytes": float(lengths[1])}
    off = 100 * abs(lengths[0] / lengths[1] - 1)
    rows.append(Row(f"bytes of {size}, off CompressAI's", off, "%", at_most=0.1, sides=sides))
    rows += entropy_paths(decode)
    publish("coding", rows)


if __name__ == "__main__":
    main()
