"""The file of a compressed picture: format, codec fingerprint, picture size, checksum, payload. Needs no torch.

docs/rd.md describes the file byte by byte.
"""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coco224.files import open_regular
from codec.bitstream.coder import Coder
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import ARCHES
from codec.bitstream.rate_coder import AnyCoder, RateCoder, at_rate
from codec.description.architecture import STRIDE
from codec.errors import InputError

MAGIC = b"NIC"
VERSION = 1
"""Of a file without z; it does not name its architecture."""
HYPER_VERSION = 2
"""Of a file with z: the number of its architecture (`ARCHES`) comes before the size."""
RATE_VERSION = 3
"""Of a file of a codec with several rates: architecture and rate come before the size."""
MAX_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs: it opens no larger picture, so no valid file holds one."""

_MAX_POSITIONS = 1 << 20
"""Most positions of y: those of MAX_PIXELS pixels, plus half for sides that are not multiples of 16. A picture of one
pixel row would have sixteen times as many positions per pixel."""

_MOST_BYTES = 1 << 28
"""12 bits for each of MAX_PIXELS: raw pixels have 24, and codecs at their highest rate 3."""
NO_CONTAINER = "no compressed picture, or one that ends early; give a file that codec.compress wrote"

_HEADER = struct.Struct("<3sBII")  # magic, version, fingerprint, CRC-32 of all other bytes


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of y for a picture."""
    return -(-height // STRIDE), -(-width // STRIDE)


def pack(
    height: int,
    width: int,
    symbols: NDArray[np.int32],
    coder: AnyCoder,
    z: NDArray[np.int32] | None = None,
    rate: int | None = None,
) -> bytes:
    """The file of a picture's symbols, int32 [M, *latent_size(height, width)].

    Args:
        z: with a hyperprior, the symbols of z, int32 [N, *z_size(*latent_size(height, width))].
        rate: the number of the rate of the symbols; None: the highest.

    Raises:
        InputError: the picture has more than MAX_PIXELS, or next to no information for its size.
    """
    check_size(height, width)
    of_rate = at_rate(coder, rate)
    payload = of_rate.encode(symbols, z)
    _check_length(payload, height, width, of_rate)  # every file that is written must be readable
    version, fingerprint = _version(coder), coder.tables.fingerprint
    numbered = _varint(coder.most if rate is None else rate) if isinstance(coder, RateCoder) else b""
    body = _arch(coder) + numbered + _varint(width) + _varint(height) + payload
    return _HEADER.pack(MAGIC, version, fingerprint, _checksum(version, fingerprint, body)) + body


def read_container(path: Path) -> bytes:
    """The bytes of such a file.

    Raises:
        InputError: it does not begin as one, or is larger than any that is written.
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        begin = file.read(len(MAGIC))
        if begin != MAGIC:
            raise InputError(NO_CONTAINER)
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise InputError(f"it has {size:,} bytes and no compressed picture has more than {_MOST_BYTES:,}")
        return begin + file.read()


def unpack(data: bytes, coder: AnyCoder) -> tuple[int, int, NDArray[np.int32]]:
    """Height and width of the picture, and `coder.decode`'s result, int32 [M, *latent_size(height, width)].

    Raises:
        InputError: the data is not such a file, is of another version or codec, or is damaged. The message is the
            reason, without the file's name.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise InputError(NO_CONTAINER)
    _, version, fingerprint, checksum = _HEADER.unpack_from(data)
    if version not in (VERSION, HYPER_VERSION, RATE_VERSION):
        raise InputError(
            f"it is of version {version} and this program reads versions {VERSION} to {RATE_VERSION}; or it is damaged"
        )
    body = data[_HEADER.size :]
    if _checksum(version, fingerprint, body) != checksum:
        raise InputError("it is truncated or altered: the checksum does not match; fetch it again")
    if fingerprint != coder.tables.fingerprint:
        raise InputError(
            f"it was written with codec {fingerprint:08x}{_in_words(version, body)} and this one is "
            f"{coder.tables.fingerprint:08x}; give the checkpoint that it was written with"
        )
    arch = _arch(coder)
    if version != _version(coder) or not body.startswith(arch):
        raise InputError("its fingerprint is this codec's, but its architecture is not; it is damaged, fetch it again")
    start, of_rate = len(arch), coder
    if isinstance(coder, RateCoder):
        rate, start = _read_varint(body, start)
        of_rate = coder.at(rate)
    assert not isinstance(of_rate, RateCoder)
    width, start = _read_varint(body, start)
    height, start = _read_varint(body, start)
    check_size(height, width)
    payload = body[start:]
    _check_length(payload, height, width, of_rate)
    return height, width, of_rate.decode(payload, *latent_size(height, width))


def _version(coder: AnyCoder) -> int:
    if isinstance(coder, RateCoder):
        return RATE_VERSION
    return HYPER_VERSION if isinstance(coder, HyperCoder) else VERSION


def _arch(coder: AnyCoder) -> bytes:
    """The byte that names the architecture; version 1 has none."""
    return b"" if isinstance(coder, Coder) else bytes([coder.tables.number])


def _in_words(version: int, body: bytes) -> str:
    """The architecture that a file of version 2 or 3 names."""
    named = ARCHES.get(body[0]) if version != VERSION and body else None
    return f" ({named})" if named else ""


def _checksum(version: int, fingerprint: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<3sBI", MAGIC, version, fingerprint)))


def check_size(height: int, width: int) -> None:
    """Refuses, in one line, a picture that is too large."""
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(f"a picture of {width}x{height} pixels; there may be 1 to {MAX_PIXELS}")
    rows, columns = latent_size(height, width)
    if rows * columns > _MAX_POSITIONS:
        raise InputError(
            f"a picture of {width}x{height} pixels; with sides extended to multiples of {STRIDE} there may be "
            f"{_MAX_POSITIONS * STRIDE**2}"
        )


def _check_length(payload: bytes, height: int, width: int, coder: Coder | HyperCoder) -> None:
    """Refuses a size that so few bytes cannot hold, before memory is taken for it."""
    fewest = coder.fewest_bytes(*latent_size(height, width))
    if len(payload) < fewest:
        raise InputError(
            f"{len(payload)} bytes for a picture of {width}x{height} pixels, whose symbols take {fewest} at least"
        )


def _varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the eighth bit where more follow."""
    low = bytes([number & 127 | (128 if number > 127 else 0)])
    return low + _varint(number >> 7) if number > 127 else low


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, of at most five bytes, and where it ends."""
    number = 0
    for place, byte in enumerate(data[start : start + 5]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, start + place + 1
    raise InputError("it holds no picture size")
