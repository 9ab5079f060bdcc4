"""The container: what is not as it was written gives one clear line, and never a picture."""

import hashlib
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_codec
from symbols import drawn

from benchmarks.damage import damaged
from codec.bitstream.coder import Coder
from codec.bitstream.container import MAX_PIXELS, pack, read_container, unpack
from codec.bitstream.tables import Tables
from codec.errors import InputError
from codec.files import FileCodec

GOLDEN = Path(__file__).parent / "golden" / "astronaut.nic"


def sealed(data: bytes) -> bytes:
    """The file with the checksum that fits it."""
    return data[:8] + struct.pack("<I", zlib.crc32(data[:8] + data[12:])) + data[12:]


def test_the_golden_file_decodes_to_the_same_picture_in_every_run() -> None:
    """Made once, from 501x499 pixels of the astronaut; its symbols give the file again, byte for byte."""
    codec = FileCodec(golden_codec())
    data = GOLDEN.read_bytes()
    height, width, symbols = unpack(data, codec.coder)
    assert hashlib.sha256(symbols.tobytes()).hexdigest() == (
        "f74c3c5a9fd9854fcd84002829517ef12e7a80972d9cad98cd3dddc40b5005ac"
    )
    assert pack(height, width, symbols, codec.coder) == data
    (picture,) = codec.decompress([data])
    assert picture.shape == (3, 499, 501)
    assert picture.dtype == torch.uint8
    assert hashlib.sha256(picture.numpy().tobytes()).hexdigest() == (
        "3f180bcf7e88485bc83698ab2fa4d45bf0b1a3119757478df4c457d842f1d5e6"
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (17, 33), (1, 20_000)])
def test_a_picture_of_any_size_comes_back_in_sixteen_bytes_more(
    coder: Coder, tables: Tables, height: int, width: int
) -> None:
    symbols = drawn(tables, -(-height // 16), -(-width // 16))
    data = pack(height, width, symbols, coder)
    assert len(data) <= len(coder.encode(symbols)) + 16
    read = unpack(data, coder)
    assert read[:2] == (height, width)
    assert np.array_equal(read[2], symbols)


def test_the_line_says_what_is_wrong(coder: Coder, tables: Tables) -> None:
    data = pack(40, 30, drawn(tables, 3, 2), coder)
    for wrong, words in (
        (b"", "no compressed picture"),
        (b"\x89PNG" + data[4:], "no compressed picture"),
        (data[:10], "ends early"),
        (data[:3] + b"\4" + data[4:], "version 4"),
        (data[:-1], "truncated or altered"),
        (sealed(data[:12] + b"\xff" * 9), "no picture size"),
    ):
        with pytest.raises(InputError, match=words):
            unpack(wrong, coder)
    stranger = Coder(replace(tables, fingerprint=tables.fingerprint ^ 1))
    with pytest.raises(InputError, match=f"written with codec {tables.fingerprint:08x}"):
        unpack(data, stranger)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    for begin, says in ((b"", "no compressed picture"), (b"NIC", "it has 6,000,000,000 bytes")):
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(6 * 10**9)
        with pytest.raises(InputError, match=says):
            read_container(path)
    assert read_container(GOLDEN) == GOLDEN.read_bytes()


@pytest.mark.parametrize("size", [(2**31, 1), (2**16, 2**15), (MAX_PIXELS, 2), (0, 5)])
def test_a_size_that_no_picture_has_is_refused_before_anything_is_allocated(
    coder: Coder, tables: Tables, size: tuple[int, int]
) -> None:
    with pytest.raises(InputError, match="pixels"):
        pack(*size, drawn(tables, 1, 1), coder)
    header = pack(1, 1, drawn(tables, 1, 1), coder)[:12]
    claimed = b"".join(bytes([n >> 7 * i & 127 | 128 * (i < 4) for i in range(5)]) for n in reversed(size))
    with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels"):
        unpack(sealed(header + claimed + b"symbols"), coder)


@pytest.mark.parametrize("size", [(13_377, 13_377), (16, 11_000_000), (11_000_000, 16), (1, 178_956_970)])
def test_a_size_that_the_bytes_cannot_hold_is_refused_before_anything_is_allocated(
    coder: Coder, tables: Tables, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = pack(1, 1, drawn(tables, 1, 1), coder)[:12]
    claimed = b"".join(bytes([n >> 7 * i & 127 | 128 * (i < 4) for i in range(5)]) for n in reversed(size))
    monkeypatch.setattr(Coder, "decode", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels"):
        unpack(sealed(header + claimed + b"few"), coder)


def test_the_fewest_bytes_are_never_more_than_the_most_probable_symbols_take(coder: Coder, tables: Tables) -> None:
    counts = [np.diff(cdf[:n])[:-1] for cdf, n in zip(tables.cdfs, tables.lengths, strict=True)]
    likely = (np.array([each.argmax() for each in counts]) + tables.offsets).astype(np.int32)
    for positions in (1, 1_000, 40_000):
        symbols = np.repeat(likely[:, None, None], positions, 2)
        first = symbols.copy()
        first[-1] = tables.offsets[-1]  # the last row is coded first, and its first interval costs nothing there
        assert coder.fewest_bytes(1, positions) <= min(len(coder.encode(each.copy())) for each in (symbols, first))
    assert coder.fewest_bytes(1, 400_000) > 1_000


def test_damaged_files_never_give_a_picture(coder: Coder, tables: Tables) -> None:
    files = [
        pack(16 * h, 16 * w, drawn(tables, h, w, spread), coder) for h, w, spread in ((3, 2, 1), (9, 14, 5), (1, 1, 1))
    ]
    for data in damaged(files, count=2_000, seed=0):
        with pytest.raises(InputError):
            unpack(data, coder)
