"""Tables and coder: the integers are the contract."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compressai.ans import RansEncoder
from integer_stack import IntegerStack
from numpy.typing import NDArray
from programs import ROOT
from symbols import drawn

from codec.bitstream.coder import Coder
from codec.bitstream.tables import Tables, from_bytes, read_tables, to_bytes
from codec.errors import InputError

Symbols = NDArray[np.int32]


def by_integers(tables: Tables, payload: bytes, height: int, width: int) -> Symbols:
    """The coder's format, read with Python's integers alone, as docs/rd.md describes it."""
    stack, places = IntegerStack(payload), height * width
    symbols = stack.group(tables.rows, [channel for channel in range(tables.channels) for _ in range(places)])
    assert stack.is_empty
    return np.array(symbols, np.int32).reshape(-1, height, width)


@pytest.mark.parametrize(("height", "width", "spread"), [(1, 1, 1), (3, 2, 1), (9, 14, 1), (9, 14, 5)])
def test_symbols_come_back_and_the_integer_tables_are_what_decodes_them(
    coder: Coder, tables: Tables, height: int, width: int, spread: float
) -> None:
    assert tables.lengths.min() < 10  # the coder has another search for short tables
    assert tables.lengths.max() > 100
    symbols = drawn(tables, height, width, spread)
    payload = coder.encode(symbols)
    assert np.array_equal(coder.decode(payload, height, width), symbols)
    assert np.array_equal(by_integers(tables, payload, height, width), symbols)


def test_any_int32_is_coded_however_far_from_its_table(
    coder: Coder, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbols = np.random.default_rng(0).integers(-(2**31), 2**31, size=(24, 4, 5)).astype(np.int32)
    symbols[:, 0, 0], symbols[:, 0, 1] = -(2**31), 2**31 - 1
    for row in range(2):  # the symbols on both sides of both ends of each table
        edge = tables.offsets + row * (tables.lengths - 2)
        symbols[:, 1, 2 * row], symbols[:, 1, 2 * row + 1] = edge - 1, edge
    payload = coder.encode(symbols)
    assert np.array_equal(coder.decode(payload, 4, 5), symbols)
    assert np.array_equal(by_integers(tables, payload, 4, 5), symbols)
    monkeypatch.setattr("codec.bitstream.rows._ESCAPES", 7)  # in many parts
    assert coder.encode(symbols) == payload
    assert np.array_equal(coder.decode(payload, 4, 5), symbols)


def test_nothing_but_what_was_written_is_read(coder: Coder, tables: Tables) -> None:
    payload = coder.encode(drawn(tables, 9, 14, 5))
    for wrong in (payload + b"\0", payload + b"\0\0\0\1", payload + payload):
        with pytest.raises(InputError):
            coder.decode(wrong, 9, 14)


@pytest.mark.parametrize("spread", [1, 5])
def test_as_many_bytes_as_compressai_s_coder(coder: Coder, tables: Tables, spread: float) -> None:
    symbols = drawn(tables, 64, 64, spread)
    indexes = np.broadcast_to(np.arange(24)[:, None, None], symbols.shape).ravel().tolist()
    rows = (tables.cdfs.tolist(), tables.lengths.tolist(), tables.offsets.tolist())
    theirs = RansEncoder().encode_with_indexes(symbols.ravel().tolist(), indexes, *rows)
    assert len(coder.encode(symbols)) == pytest.approx(len(theirs), rel=1e-3)


def test_tables_survive_their_file_and_damage_to_it_is_noticed(tables: Tables, tmp_path: Path) -> None:
    data = to_bytes(tables)
    again = from_bytes(data)
    assert again.fingerprint == tables.fingerprint
    for name in ("medians", "offsets", "lengths", "cdfs"):
        assert np.array_equal(getattr(again, name), getattr(tables, name))
        assert getattr(again, name).dtype == getattr(tables, name).dtype
    for damaged in (b"", data[:20], data[:-4], data + b"\0\0\0\0", b"XXXX" + data[4:], data[:30] + b"\1" + data[31:]):
        (tmp_path / "damaged.bin").write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            read_tables(tmp_path / "damaged.bin")


def test_tables_that_are_none_are_refused(tables: Tables) -> None:
    wrong = [
        {"cdfs": tables.cdfs * 2},
        {"cdfs": tables.cdfs[:, ::-1]},
        {"lengths": tables.lengths - 1},
        {"lengths": tables.lengths + 9999},
        {"offsets": tables.offsets[1:]},
        {"medians": tables.medians * np.nan},
    ]
    for change in wrong:
        with pytest.raises(InputError, match="entropy tables"):
            Tables(**(vars(tables) | change))


@pytest.mark.slow
def test_the_coder_needs_neither_torch_nor_compressai() -> None:
    words = "import sys, codec.bitstream.container; print({'torch', 'compressai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
