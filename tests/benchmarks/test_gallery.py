"""The gallery: a montage and a table of files of one size; and the best file of a format within a size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import gallery
from codec.evaluation.metrics import psnr
from codec.evaluation.references import within


@pytest.fixture
def coffee(photographs: Path) -> Tensor:
    """uint8 [3, 256, 256]."""
    return torch.from_numpy(np.array(Image.open(photographs / "coffee.png"))[100:356, 150:406]).permute(2, 0, 1)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_the_best_file_within_a_size_is_taken(name: str, coffee: Tensor) -> None:
    found = [within(name, coffee, limit) for limit in (4_000, 8_000, 16_000)]
    assert all(
        0.85 * limit < len(file) <= limit for (file, _), limit in zip(found, (4_000, 8_000, 16_000), strict=True)
    )
    quality = [float(psnr(decoded[None] / 255, coffee[None] / 255)) for _, decoded in found]
    assert quality == sorted(quality)
    smallest, _ = within(name, coffee, 1)
    assert 1 < len(smallest) < 2_000


def test_the_page_shows_every_codec_beside_the_original(
    coffee: Tensor, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "PAGE", tmp_path / "gallery.md")
    monkeypatch.setattr(gallery, "SHOWN", {"chelsea.png": (110, 30)})
    gallery.main()
    page = (tmp_path / "gallery.md").read_text()
    names = ("GDN, float", "gate_mlp, int8", "JPEG", "WebP", "AVIF")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["codec", "---", *names]
    assert all(0.2 < float(row[1]) <= gallery.BPP for row in rows[2:])
    with Image.open(tmp_path / "gallery" / "chelsea.jpg") as sheet, Image.open(photographs / "chelsea.png") as original:
        shown = np.asarray(sheet.crop((0, 0, 256, 256))).astype(float)
        kept = np.asarray(original.crop((110, 30, 366, 286))).astype(float)
    assert np.abs(shown - kept).mean() < 4  # but for the JPEG
