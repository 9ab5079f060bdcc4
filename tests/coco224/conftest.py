"""Small COCO roots of real photographs, made from those that scikit-image ships."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from programs import ROOT, run

REAL_COCO = ROOT.parent / "shared" / "data" / "coco2017"


@pytest.fixture(scope="session")
def real_coco() -> Path:
    if not REAL_COCO.is_dir():
        pytest.skip(f"no COCO photographs at {REAL_COCO}")
    return REAL_COCO


def pieces(photograph: Path, width: int, height: int) -> Iterator[Image.Image]:
    """Different windows of a photograph, without end."""
    with Image.open(photograph) as image:
        whole = image.convert("RGB")
    while True:
        for top in range(0, whole.height - height, 37):
            for left in range(0, whole.width - width, 53):
                yield whole.crop((left, top, left + width, top + height))


@pytest.fixture(scope="session")
def make_coco(photographs: Path) -> Callable[..., Path]:
    """make_coco(root, train=, val=, width=, height=): a COCO root of that many JPEG windows of a photograph."""

    def make(root: Path, train: int = 6, val: int = 2, width: int = 120, height: int = 90) -> Path:
        windows = pieces(photographs / "coffee.png", width, height)
        for folder, count in (("train2017", train), ("val2017", val)):
            (root / folder).mkdir(parents=True)
            for number in range(count):
                next(windows).save(root / folder / f"{number:012d}.jpg", quality=90)
        return root

    return make


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The words of the command, for a process."""

    def command(coco_dir: Path | str, out_dir: Path, *options: str) -> list[str]:
        words = [sys.executable, "-m", "coco224.prepare", "--coco_dir", str(coco_dir), "--out_dir", str(out_dir)]
        return [*words, *options]

    return command


@pytest.fixture(scope="session")
def prepare(command: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """prepare(coco_dir, out_dir, *options): the command, run to its end."""

    def prepare(coco_dir: Path | str, out_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
        return run(*command(coco_dir, out_dir, *options)[1:])

    return prepare


def fit_like_pillow(crop: np.ndarray, photograph: Image.Image) -> None:
    fit = np.asarray(ImageOps.fit(photograph.convert("RGB"), crop.shape[:2], Image.Resampling.BICUBIC), np.int16)
    difference = np.abs(crop - fit)
    assert (difference <= 1).mean() > 0.998
    assert np.square(difference, dtype=float).mean() < 255**2 / 10**5  # 50 dB


@pytest.fixture(scope="session")
def assert_fits_like_pillow() -> Callable[[np.ndarray, Image.Image], None]:
    """Asserts that a crop is ImageOps.fit's: to one level of 255 but for two values in a thousand, and over 50 dB."""
    return fit_like_pillow


def tree(folder: Path) -> dict[str, str]:
    """The digest of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    return tree
