"""Coder, container and tables of the codecs with a hyperprior."""

import struct
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hyper import HYPER, Symbols, arrays_of, hyper_codec, hyper_tables
from integer_stack import IntegerStack
from test_container import sealed

from benchmarks.coding import drawn_hyper
from benchmarks.damage import damaged
from codec.bitstream import hyper_coder
from codec.bitstream.container import pack, unpack
from codec.bitstream.hyper_coder import HyperCoder, pieces, z_size
from codec.bitstream.hyper_tables import PREFIX, HyperTables
from codec.bitstream.rows import bits
from codec.bitstream.tables import from_bytes, tables_of_state, to_bytes
from codec.errors import InputError

SIZES = ((1, 1), (1, 9), (5, 3), (8, 8), (13, 6))
G_S = {"name": "gdn", "options": {}}


@pytest.fixture(scope="module", params=HYPER)
def coder(request: pytest.FixtureRequest) -> HyperCoder:
    return HyperCoder(hyper_tables(request.param))


def values(coder: HyperCoder, symbols: Symbols, z: Symbols) -> Symbols:
    """What decoding gives."""
    _, means = coder.context(z, *symbols.shape[1:])
    return symbols if means is None else symbols * 64 + means


def estimated(coder: HyperCoder, symbols: Symbols, z: Symbols) -> float:
    """The bits of y and z by the tables."""
    channels = np.repeat(np.arange(len(z)), z[0].size)
    return coder.bits_of_y(symbols, z) + bits(coder.tables.z, z.ravel(), channels)


def by_integers(tables: HyperTables, payload: bytes, height: int, width: int) -> tuple[Symbols, Symbols]:
    """Symbols of y and z of one piece, read with Python's integers alone, as docs/rd.md describes it."""
    stack = IntegerStack(payload)
    channels, (rows, columns) = len(tables.z.offsets), z_size(height, width)
    z = np.array(stack.group(tables.z, [c for c in range(channels) for _ in range(rows * columns)]), np.int32)
    z = z.reshape(channels, rows, columns)
    picked = HyperCoder(tables).context(z, height, width)[0].ravel()
    order = sorted(range(picked.size), key=lambda i: (picked[i], i))
    y = np.empty(picked.size, np.int32)
    y[order] = stack.group(tables.y, picked[order].tolist())
    assert stack.is_empty
    return y.reshape(-1, height, width), z


@pytest.mark.parametrize("spread", [1, 9])
def test_y_and_z_come_back_and_the_integer_tables_are_what_decodes_them(coder: HyperCoder, spread: float) -> None:
    for height, width in SIZES:
        symbols, z = drawn_hyper(coder.tables, height, width, spread)
        payload = coder.encode(symbols, z)
        assert np.array_equal(coder.decode(payload, height, width), values(coder, symbols, z))
        for found, expected in zip(by_integers(coder.tables, payload, height, width), (symbols, z), strict=True):
            assert np.array_equal(found, expected)


def test_estimated_bits_are_those_of_the_payload(coder: HyperCoder) -> None:
    for spread in (1, 9):
        symbols, z = drawn_hyper(coder.tables, 40, 30, spread)
        assert len(coder.encode(symbols, z)) * 8 == pytest.approx(estimated(coder, symbols, z), rel=1e-3, abs=64)


def test_symbols_that_no_table_holds(coder: HyperCoder) -> None:
    symbols, z = drawn_hyper(coder.tables, 5, 6)
    most = 2**24 - 1 if coder.tables.network.has_means else 2**31 - 1
    symbols[0, 0, 0], symbols[1, 0, 0], symbols[2, 0, 1] = most, -most, 400_000
    z[:, 0, 0] = 2**31 - 1
    z[:, 1, 1] = -(2**31)
    payload = coder.encode(symbols, z)
    assert np.array_equal(coder.decode(payload, 5, 6), values(coder, symbols, z))
    for found, expected in zip(by_integers(coder.tables, payload, 5, 6), (symbols, z), strict=True):
        assert np.array_equal(found, expected)
    if coder.tables.network.has_means:
        symbols[0, 0, 0] = most + 1
        with pytest.raises(InputError, match="25 bits"):
            coder.encode(symbols, z)


def test_pieces_cover_y_once_and_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for channels, height, width in ((320, 32, 48), (320, 250, 190), (192, 1, 2**20), (3, 4096, 256), (2**21, 3, 5)):
        found = list(pieces(channels, height, width))
        rows, columns = z_size(height, width)
        assert all((b - a) * (d - c) * 16 * channels <= 2**21 or (b - a, d - c) == (1, 1) for (a, b), (c, d) in found)
        assert found[0][0][0] == found[0][1][0] == 0
        assert found[-1][0][1] == rows
        assert found[-1][1][1] == columns
        assert all((a[1][1], a[0]) == (b[1][0], b[0]) or (a[0][1], 0) == (b[0][0], b[1][0]) for a, b in pairwise(found))
    assert len(list(pieces(320, 32, 48))) == 1
    assert [rows for rows, _ in pieces(320, 250, 190)][:2] == [(0, 8), (8, 16)]


def test_a_file_of_several_pieces(coder: HyperCoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for at_once in (1, 12 * 16 * 4, 12 * 16 * 9):
        monkeypatch.setattr(hyper_coder, "_SYMBOLS_AT_ONCE", at_once)
        symbols, z = drawn_hyper(coder.tables, 17, 14, 3)
        assert len(list(pieces(*symbols.shape))) > 2
        assert np.array_equal(coder.decode(coder.encode(symbols, z), 17, 14), values(coder, symbols, z))
        assert len(coder.encode(symbols, z)) * 8 == pytest.approx(estimated(coder, symbols, z), rel=1e-3, abs=64)


def test_symbols_are_rounded_around_the_means(coder: HyperCoder) -> None:
    symbols, z = drawn_hyper(coder.tables, 9, 7)
    _, means = coder.context(z, 9, 7)
    y = symbols + np.float32(0.4) + (0 if means is None else means * np.float32(coder.unit))
    assert np.array_equal(coder.round(y, z), symbols)
    decoded = coder.decode(coder.encode(coder.round(y, z), z), 9, 7)
    assert np.abs(decoded * coder.unit + coder.medians - y).max() < 0.5
    for wrong in (np.nan, np.inf, 3e9):
        y[0, 0, 0] = wrong
        with pytest.raises(InputError, match="not finite"):
            coder.round(y, z)


def test_z_of_another_size_is_a_bug(coder: HyperCoder) -> None:
    symbols, z = drawn_hyper(coder.tables, 9, 7)
    for wrong in (None, z[:, 1:], z[1:]):
        with pytest.raises(ValueError, match="needs z"):
            coder.encode(symbols, wrong)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (17, 33), (65, 130)])
def test_a_picture_of_any_size_comes_back_in_seventeen_bytes_more(coder: HyperCoder, height: int, width: int) -> None:
    symbols, z = drawn_hyper(coder.tables, -(-height // 16), -(-width // 16))
    data = pack(height, width, symbols, coder, z)
    assert data[3] == 2
    assert data[12] == 1 + coder.tables.network.has_means
    assert len(data) <= len(coder.encode(symbols, z)) + 17
    read = unpack(data, coder)
    assert read[:2] == (height, width)
    assert np.array_equal(read[2], values(coder, symbols, z))


def test_the_line_says_what_is_wrong(coder: HyperCoder) -> None:
    symbols, z = drawn_hyper(coder.tables, 3, 2)
    data = pack(40, 30, symbols, coder, z)
    for wrong, words in (
        (data[:-1], "truncated or altered"),
        (sealed(data[:3] + b"\1" + data[4:]), "its architecture is not"),
        (sealed(data[:12] + b"\3" + data[13:]), "its architecture is not"),
        (sealed(data[:13] + b"\xff" * 9), "no picture size"),
        (sealed(data[:12]), "its architecture is not"),
        (sealed(data[:13] + b"\xd0\xa5\x01" * 2 + b"few"), "pixels"),
    ):
        with pytest.raises(InputError, match=words):
            unpack(wrong, coder)
    stranger = HyperCoder(replace(coder.tables, fingerprint=coder.tables.fingerprint ^ 1))
    with pytest.raises(InputError, match=rf"codec {coder.tables.fingerprint:08x} \({coder.tables.arch}\) and this one"):
        unpack(data, stranger)


def test_the_fewest_bytes_are_never_more_than_the_most_probable_symbols_take(coder: HyperCoder) -> None:
    rows = coder.tables.z
    likely = np.array([np.diff(cdf[: n - 1]).argmax() for cdf, n in zip(rows.cdfs, rows.lengths, strict=True)])
    for height, width in ((1, 1), (40, 40), (160, 160)):
        z = np.broadcast_to((likely + rows.offsets)[:, None, None], (len(likely), *z_size(height, width)))
        z = np.ascontiguousarray(z, np.int32)
        picked, _ = coder.context(z, height, width)
        assert coder.fewest_bytes(height, width) <= len(coder.encode(np.zeros(picked.shape, np.int32), z))
    assert coder.fewest_bytes(1000, 1000) > 1000


def test_damaged_files_never_give_a_picture(coder: HyperCoder) -> None:
    files = []
    for height, width, spread in ((3, 2, 1), (9, 14, 5), (1, 1, 1)):
        symbols, z = drawn_hyper(coder.tables, height, width, spread)
        files.append(pack(16 * height, 16 * width, symbols, coder, z))
    for data in damaged(files, count=1_000, seed=0):
        with pytest.raises(InputError):
            unpack(data, coder)


def test_a_forged_checksum_gives_an_error_or_symbols_and_nothing_else(coder: HyperCoder) -> None:
    symbols, z = drawn_hyper(coder.tables, 9, 14, 5)
    data = pack(144, 224, symbols, coder, z)
    refused = 0
    for wrong in damaged([data[15:]], count=200, seed=0):
        try:
            assert unpack(sealed(data[:15] + wrong), coder)[2].shape == symbols.shape
        except InputError:
            refused += 1
    assert refused > 150


def test_tables_survive_their_file(coder: HyperCoder) -> None:
    data = to_bytes(coder.tables)
    assert struct.unpack_from("<4sI", data) == (b"NICT", 2)
    again = from_bytes(data)
    assert isinstance(again, HyperTables)
    assert to_bytes(again) == data
    assert again.fingerprint == coder.tables.fingerprint
    assert again.arch == coder.tables.arch
    symbols, z = drawn_hyper(coder.tables, 9, 14)
    assert HyperCoder(again).encode(symbols, z) == coder.encode(symbols, z)


def test_a_damaged_or_forged_file_of_tables_is_refused_or_holds_tables(coder: HyperCoder) -> None:
    data = to_bytes(coder.tables)
    for wrong in damaged([data], count=100, seed=0):
        with pytest.raises(InputError):
            from_bytes(wrong)
    head = range(12, 52, 4)
    forged = [
        data[:place] + struct.pack("<I", number) + data[place + 4 :] for place in head for number in (0, 1, 2**32 - 1)
    ]
    refused = 0
    for wrong in (*forged, *damaged([data], count=200, seed=1)):
        try:
            from_bytes(wrong[:8] + struct.pack("<I", zlib.crc32(wrong[12:])) + wrong[12:])
        except InputError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("arch", HYPER)
def test_a_checkpoint_gives_the_tables_and_stale_ones_are_refused(arch: str) -> None:
    arrays = arrays_of(hyper_codec(arch))
    tables = tables_of_state(arrays, G_S)
    assert isinstance(tables, HyperTables)
    assert (tables.arch, tables.channels) == (arch, 12)
    for name in ("h_s.2.weight", "h_s.4.bias", "entropy_bottleneck.quantiles", "gaussian_conditional.scale_table"):
        with pytest.raises(InputError, match="CDF tables are stale"):
            tables_of_state(arrays | {name: arrays[name] * np.float32(1.001)}, G_S)
    for name in (f"{PREFIX}1.weight", f"{PREFIX}numbers", "gaussian_conditional._offset", "entropy_bottleneck._offset"):
        with pytest.raises(InputError, match="training wrote"):
            tables_of_state({key: array for key, array in arrays.items() if key != name}, G_S)
    without = {name: array for name, array in arrays.items() if not name.startswith(PREFIX)}
    with pytest.raises(InputError, match="no CDF tables"):
        tables_of_state(without, G_S)


@pytest.mark.parametrize("arch", HYPER)
def test_the_fingerprint_is_that_of_what_decodes(arch: str) -> None:
    arrays = arrays_of(hyper_codec(arch))
    own = tables_of_state(arrays, G_S).fingerprint
    decoding = ("g_s.0.weight", "gaussian_conditional._quantized_cdf", f"{PREFIX}2.weight", f"{PREFIX}thresholds")
    for name in decoding:
        changed = arrays[name].copy()
        changed[(0,) * (changed.ndim - 1) + (1,)] += 1
        assert tables_of_state(arrays | {name: changed}, G_S).fingerprint != own
    assert tables_of_state(arrays, {"name": "relu"}).fingerprint != own
    for name in ("g_a.0.weight", "h_a.0.weight"):
        assert tables_of_state(arrays | {name: arrays[name] * 2}, G_S).fingerprint == own
