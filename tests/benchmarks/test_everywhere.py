"""What benchmarks.everywhere counts is what there is to count."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import everywhere
from benchmarks.everywhere import KINDS, Setting, crops, decode, encode, lively, prepare, rated, rows
from codec.description.architecture import ARCHITECTURES


def test_symbols_and_float_indexes_that_differ_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        everywhere, "SETTINGS", (Setting("as it is"), Setting("another processor's", needs="no_such_flag"))
    )
    for arch in ARCHITECTURES:
        prepare(lively(arch, 8, 12), tmp_path)
        prepare(rated(arch, 8, 12), tmp_path)
    encode(tmp_path, 0, 3)
    found = decode(tmp_path)
    symbols = sum(12 * -(-x.shape[2] // 16) * -(-x.shape[3] // 16) for x in crops(3))
    none = {"files": 3, "symbols": symbols, "wrong": 0, "wrong_by_torch": 0, "float": 0, "float_pictures": 0}
    assert found == dict.fromkeys(KINDS, none)
    path = tmp_path / "mbt2018_mean.0.npz"
    arrays = dict(np.load(path))
    arrays["1.values"][0, 0, 0] += 1
    arrays["2.floats"][:2, 0, 0] += 1
    np.savez(path, **arrays)
    changed = decode(tmp_path)
    assert changed["mbt2018_mean"] == none | {"wrong": 1, "float": 2, "float_pictures": 1}
    assert [(row.value, row.met) for row in rows([found, changed], 3)] == [
        (0, True),
        (0, True),
        (0, None),
        (1, False),
        (2, None),
        *[(0, True)] * 3,
    ]
