"""Entropy tables as numpy arrays, in memory and as a file: all that a coder needs from a codec. Needs no torch.

The tables are integers, so that all machines with the same tables read the same symbols from the same bytes.
docs/rd.md describes the file byte by byte.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coco224.files import in_words, read_regular
from codec.description.fingerprint import fingerprint
from codec.errors import InputError

PRECISION = 16
"""Bits of a CDF: every row ends at 2**16, as CompressAI's do."""

MAGIC = b"NICT"
VERSION = 1
_HEADER = struct.Struct("<4s6I")  # magic, version, CRC-32 of what follows it, fingerprint, precision, M, L
_CHECKED_FROM = 12
_MOST_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Tables:
    """The integer CDF of each channel of y, in the form of CompressAI's entropy bottleneck.

    Row c codes the symbol s as the interval s - offsets[c]; the last interval stands for all symbols outside the table.

    Attributes:
        medians: float32 [M]; a symbol is round(y - median).
        offsets: int32 [M], the symbol of each row's first interval.
        lengths: int32 [M], number of used entries of each row: its intervals + 1.
        cdfs: int32 [M, L], each row rises from 0 to 65536; zeros follow.
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
        channels, longest = self.cdfs.shape if self.cdfs.ndim == 2 else (0, 0)
        integers = (self.offsets, self.lengths, self.cdfs)
        if self.medians.dtype.kind != "f" or any(array.dtype != np.int32 for array in integers):
            raise InputError("entropy tables of another type than float medians and int32 rows")
        if not {(channels,)} == {self.medians.shape, self.offsets.shape, self.lengths.shape}:
            raise InputError("entropy tables whose arrays differ in their number of channels")
        if not channels or self.lengths.min() < 3 or self.lengths.max() > longest:
            raise InputError("entropy tables with a row that is too short or too long")
        used = np.arange(longest) < self.lengths[:, None]
        rising = (np.diff(self.cdfs, axis=1) > 0) | ~used[:, 1:]
        last = self.cdfs[np.arange(channels), self.lengths - 1]
        if not (rising.all() and (self.cdfs[:, 0] == 0).all() and (last == 1 << PRECISION).all()):
            raise InputError("entropy tables with a row that does not rise from 0 to 65536")
        if not np.isfinite(self.medians).all():
            raise InputError("entropy tables whose medians are not finite")


def tables_of_state(state: Mapping[str, NDArray[Any]], g_s: dict[str, Any]) -> Tables:
    """The entropy tables of a checkpoint.

    The fingerprint covers all that decoding a file depends on: the tables, g_s and its block. Codecs that differ only
    in g_a or in quantization read each other's files: an int8 encoder can write for a float decoder.

    Args:
        state: a codec's state dict.
        g_s: the block of the decoder, as in the architecture.

    Raises:
        InputError: the codec has no tables.
    """
    names = [f"entropy_bottleneck.{name}" for name in ("_quantized_cdf", "_offset", "_cdf_length", "quantiles")]
    if not all(name in state and state[name].size for name in names):
        raise InputError("this codec has no CDF tables; give a checkpoint that training wrote")
    cdfs, offsets, lengths, quantiles = (state[name] for name in names)
    if quantiles.shape[1:] != (1, 3):
        raise InputError(f"quantiles of shape {quantiles.shape}; an entropy model has [M, 1, 3]")
    medians = quantiles[:, 0, 1].copy()
    read = {"medians": medians, "cdfs": cdfs, "offsets": offsets, "lengths": lengths}
    read |= {name: array for name, array in state.items() if name.startswith("g_s.") and "quantizer" not in name}
    identity = fingerprint(read, {"g_s": json.dumps(g_s, sort_keys=True)})
    return Tables(medians, offsets.copy(), lengths.copy(), cdfs.copy(), int(identity[:8], 16))


def to_bytes(tables: Tables) -> bytes:
    """The file: a header of seven little-endian 32-bit words, then medians, offsets, lengths and CDFs."""
    arrays = (tables.medians.astype("<f4"), *(a.astype("<i4") for a in (tables.offsets, tables.lengths, tables.cdfs)))
    fields = (tables.fingerprint, PRECISION, *tables.cdfs.shape)
    checked = struct.pack("<4I", *fields) + b"".join(array.tobytes() for array in arrays)
    return struct.pack("<4sII", MAGIC, VERSION, zlib.crc32(checked)) + checked


def from_bytes(data: bytes) -> Tables:
    """The inverse of `to_bytes`.

    Raises:
        InputError: the data is not such a file, is of another version, or is damaged.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise InputError("no entropy tables; give the file that the export wrote beside the model")
    _, version, checksum, fingerprint, precision, channels, longest = _HEADER.unpack_from(data)
    if (version, precision) != (VERSION, PRECISION):
        raise InputError(
            f"entropy tables of version {version}, {precision} bits; this program reads {VERSION}, 16 bits"
        )
    if len(data) != _HEADER.size + 4 * channels * (3 + longest) or zlib.crc32(data[_CHECKED_FROM:]) != checksum:
        raise InputError("damaged entropy tables: the checksum does not match; export the model again")
    words = np.frombuffer(data, "<i4", offset=_HEADER.size)
    medians, offsets, lengths = words[: 3 * channels].reshape(3, channels)
    return Tables(
        medians=medians.view("<f4").astype(np.float32),
        offsets=offsets.astype(np.int32),
        lengths=lengths.astype(np.int32),
        cdfs=words[3 * channels :].reshape(channels, longest).astype(np.int32),
        fingerprint=fingerprint,
    )


def read_tables(path: Path) -> Tables:
    """Reads the tables of a file; an InputError names the file."""
    try:
        return from_bytes(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise InputError(f"{in_words(error)}; give the file that the export wrote beside the model") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
