"""Entropy tables as numpy arrays, in memory and as a file: all that a coder needs from a codec. Needs no torch.

The tables are integers, so that all machines with the same tables read the same symbols from the same bytes.
docs/rd.md describes the file byte by byte.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coco224.files import in_words, read_regular
from codec.bitstream import hyper_tables, rate_tables
from codec.bitstream.hyper_tables import HyperTables, hyper_tables_of_state
from codec.bitstream.rate_tables import RateTables, has_rates, rate_tables_of_state
from codec.bitstream.rows import PRECISION, Rows
from codec.bitstream.state import State, decoder_fingerprint, medians_of, rows_of
from codec.errors import InputError

MAGIC = b"NICT"
VERSION = 1
_START = struct.Struct("<4s2I")  # magic, version, CRC-32 of what follows
_HEADER = struct.Struct("<4I")  # fingerprint, precision, M, L
_MOST_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Tables:
    """The integer CDF of each channel of y, in the form of CompressAI's entropy bottleneck.

    Attributes:
        medians: float32 [M]; a symbol is round(y - median).
        offsets, lengths, cdfs: int32 [M], [M] and [M, L], as in `Rows`: a row for each channel.
        fingerprint: 32 bits that identify the codec's decoder and tables.

    Raises:
        InputError: the arrays are not such tables.
    """

    medians: NDArray[np.float32]
    offsets: NDArray[np.int32]
    lengths: NDArray[np.int32]
    cdfs: NDArray[np.int32]
    fingerprint: int

    def __post_init__(self) -> None:
        """Checks the arrays."""
        if self.medians.dtype.kind != "f":
            raise InputError("entropy tables of another type than float medians and int32 rows")
        if self.medians.shape != self.rows.offsets.shape:
            raise InputError("entropy tables whose arrays differ in their number of channels")
        if not np.isfinite(self.medians).all():
            raise InputError("entropy tables whose medians are not finite")

    @property
    def rows(self) -> Rows:
        """The rows."""
        return Rows(self.offsets, self.lengths, self.cdfs)

    @property
    def channels(self) -> int:
        """M, the channels of y."""
        return len(self.medians)


AnyTables = Tables | HyperTables | RateTables


def tables_of_state(state: State, g_s: dict[str, Any]) -> AnyTables:
    """The entropy tables of a checkpoint.

    The fingerprint covers all that decoding a file depends on: the tables, with a hyperprior the integer h_s, g_s and
    its block. Codecs that differ only in g_a, h_a or in quantization read each other's files: an int8 encoder can write
    for a float decoder.

    Args:
        state: a codec's state dict, with a hyperprior also the arrays under `hyper_tables.PREFIX`.
        g_s: the block of the decoder, as in the architecture.

    Raises:
        InputError: the codec has no tables, or they do not fit its weights.
    """
    if has_rates(state):
        return rate_tables_of_state(state, g_s)
    if any(name.startswith("h_s.") for name in state):
        return hyper_tables_of_state(state, g_s)
    rows, medians = rows_of(state, "entropy_bottleneck"), medians_of(state)
    read = {"medians": medians, "cdfs": rows.cdfs, "offsets": rows.offsets, "lengths": rows.lengths}
    return Tables(medians, rows.offsets, rows.lengths, rows.cdfs, decoder_fingerprint(state, g_s, read))


def to_bytes(tables: AnyTables) -> bytes:
    """The file of the tables: version 1 without a hyperprior, version 2 with one, version 3 with several rates."""
    version = VERSION
    if isinstance(tables, RateTables):
        version, checked = rate_tables.VERSION, rate_tables.to_bytes(tables)
    elif isinstance(tables, HyperTables):
        version, checked = hyper_tables.VERSION, hyper_tables.to_bytes(tables)
    else:
        words = (tables.offsets, tables.lengths, tables.cdfs)
        arrays = (tables.medians.astype("<f4"), *(array.astype("<i4") for array in words))
        checked = _HEADER.pack(tables.fingerprint, PRECISION, *tables.cdfs.shape)
        checked += b"".join(array.tobytes() for array in arrays)
    return _START.pack(MAGIC, version, zlib.crc32(checked)) + checked


def from_bytes(data: bytes) -> AnyTables:
    """The inverse of `to_bytes`.

    Raises:
        InputError: the data is not such a file, is of another version, or is damaged.
    """
    if len(data) < _START.size + _HEADER.size or not data.startswith(MAGIC):
        raise InputError("no entropy tables; give the file that the export wrote beside the model")
    _, version, checksum = _START.unpack_from(data)
    checked = memoryview(data)[_START.size :]
    fingerprint, precision, channels, longest = _HEADER.unpack_from(checked)
    if not VERSION <= version <= rate_tables.VERSION or precision != PRECISION:
        raise InputError(
            f"entropy tables of version {version}, {precision} bits; this program reads {VERSION} to "
            f"{rate_tables.VERSION}, {PRECISION} bits"
        )
    whole = version != VERSION or len(checked) == _HEADER.size + 4 * channels * (3 + longest)
    if not whole or zlib.crc32(checked) != checksum:
        raise InputError("damaged entropy tables: the checksum does not match; export the model again")
    if version == hyper_tables.VERSION:
        return hyper_tables.from_bytes(checked)
    if version == rate_tables.VERSION:
        return rate_tables.from_bytes(checked)
    words = np.frombuffer(checked, "<i4", offset=_HEADER.size)
    medians, offsets, lengths = words[: 3 * channels].reshape(3, channels)
    return Tables(
        medians=medians.view("<f4").astype(np.float32),
        offsets=offsets.astype(np.int32),
        lengths=lengths.astype(np.int32),
        cdfs=words[3 * channels :].reshape(channels, longest).astype(np.int32),
        fingerprint=fingerprint,
    )


def read_tables(path: Path) -> AnyTables:
    """Reads the tables of a file; an InputError names the file."""
    try:
        return from_bytes(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise InputError(f"{in_words(error)}; give the file that the export wrote beside the model") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
