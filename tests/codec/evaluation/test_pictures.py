"""What is evaluated: every picture once over all ranks, in batches of one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec.evaluation.pictures import CROP_PIXELS, open_pictures


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty crops of four sizes in turn, and one of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    coffee = Image.open(photographs / "coffee.png")
    for i in range(20):
        side = 20 * (1 + i % 4)
        coffee.crop((i, i, i + side, i + 30)).save(folder / f"{i:02d}.png")
    coffee.save(folder / "large.png")
    return folder


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_picture_is_read_once_and_alone_or_among_its_like(folder: Path, world_size: int) -> None:
    pictures = open_pictures(str(folder), None, True, 16)
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        for indices, x in pictures.read(rank, world_size):
            assert {index % world_size for index in indices} == {rank}
            assert len(indices) == 1 or x[:, 0].numel() <= 16 * CROP_PIXELS
            seen |= dict(zip(indices, x, strict=True))
    assert sorted(seen) == list(range(21))
    for index, name in enumerate(pictures.names):
        with Image.open(name) as image:
            assert np.array_equal(seen[index].permute(1, 2, 0).numpy(), np.array(image))


def test_pictures_of_one_size_make_batches(folder: Path) -> None:
    sizes = [len(indices) for indices, _ in open_pictures(str(folder), None, True, 16).read(0, 1)]
    assert sorted(sizes) == [1, 5, 5, 5, 5]
    assert {len(indices) for indices, _ in open_pictures(str(folder), None, True, 1).read(0, 1)} > {1}


def test_few_pictures_wait_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.evaluation.pictures.CROP_PIXELS", 80 * 30)
    sizes = [len(indices) for indices, _ in open_pictures(str(folder), None, True, 2).read(0, 1)]
    assert sum(sizes) == 21
    assert max(sizes) > 1
