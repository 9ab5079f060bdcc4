"""Real pictures for the benchmarks, in the form that each side reads: those that scikit-image ships, or COCO's."""

from pathlib import Path

from PIL import Image

from coco224 import prepare
from coco224.dataset import Rows, open_rows
from coco224.photographs.sample import SAMPLE

CROPS = 32
"""Crops of each photograph: 160 training rows of five photographs, ten batches of 16."""


def prepared(folder: Path, crops: int = CROPS, coco_dir: str = SAMPLE) -> Path:
    """A dataset of coco224.prepare, raw, 224x224, with so many crops of each photograph of a COCO root."""
    out = folder / "coco224"
    words = ["--coco_dir", coco_dir, "--crop", "random", "--crops_per_image", str(crops), "--out_dir", str(out)]
    status = prepare.main(words)
    assert status == 0
    return out


def image_folder(coco224: Path, folder: Path, suffix: str) -> Path:
    """The same crops as files, `folder/train/00000.SUFFIX`: what `compressai.datasets.ImageFolder` reads.

    Args:
        suffix: "png", or "jpg" (of quality 95).
    """
    import numpy as np

    rows: Rows | None = open_rows(coco224, "train", use_prepared=True)
    assert rows is not None
    train = folder / "train"
    train.mkdir(parents=True)
    corner = np.zeros(1, np.int32)
    for i in range(len(rows)):
        pixels = rows.read(np.array([i]), corner, corner, rows.size)[0]
        Image.fromarray(pixels).save(train / f"{i:05d}.{suffix}", quality=95)
    return folder
