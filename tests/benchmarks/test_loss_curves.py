"""The benchmark of loss curves tells a path that changes the result, and says whose photographs it trained on."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.curves import SEEDS, STEPS, WAYS, compared
from benchmarks.pictures import prepared
from coco224.dataset import open_rows


def test_the_ways_are_held_against_the_seeds() -> None:
    falling = np.geomspace(1, 0.1, STEPS)
    losses = {(way, seed): falling + 0.02 * seed for way, seed in itertools.product(WAYS, SEEDS)}
    assert compared(losses, "coco2017").value == 0
    losses["fast", 1] = losses["fast", 1] + 0.01 * (np.arange(STEPS) >= STEPS - 30)
    row = compared(losses, "coco2017")
    assert round(row.value, 6) == 0.5
    assert "steps on coco2017:" in row.what


def test_a_coco_root_becomes_a_dataset(tmp_path: Path, photographs: Path) -> None:
    for split in ("train2017", "val2017"):
        (tmp_path / "coco2017" / split).mkdir(parents=True)
        with Image.open(photographs / "chelsea.png") as cat:
            cat.convert("RGB").save(tmp_path / "coco2017" / split / "000000000009.jpg")
    rows = open_rows(prepared(tmp_path, 3, str(tmp_path / "coco2017")), "train", use_prepared=True)
    assert rows is not None
    assert len(rows) == 3
