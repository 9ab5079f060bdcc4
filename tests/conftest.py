"""Photographs and datasets that the tests share: real ones, from the scikit-image wheel."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import ROOT, run

COCO = ROOT.parent / "shared" / "data" / "coco2017"
"""A real subset of COCO, where the machine has one."""


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of scikit-image's photographs: astronaut.png, chelsea.png, coffee.png, rocket.jpg and others."""
    spec = importlib.util.find_spec("skimage")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="session")
def picture(photographs: Path) -> torch.Tensor:
    """The astronaut, float [1, 3, 512, 512] in [0, 1]."""
    pixels = np.array(Image.open(photographs / "astronaut.png"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def coco224(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded photographs as a dataset, made by the command: 54 training rows, 4 of validation."""
    out = tmp_path_factory.mktemp("data") / "coco224"
    done = run("-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", out)
    assert done.returncode == 0, done.stderr
    return out
