"""Where crops lie."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coco224.photographs import resize
from coco224.photographs.crops import boxes, cut, shortest_decoded
from coco224.photographs.decode import Photograph

SIZES = [(640, 480), (427, 640), (213, 140), (224, 224), (225, 224), (1, 1000)]


def one(method: str, width: int, height: int, size: int = 224, **draw: int) -> tuple[float, ...]:
    (box,) = boxes(method, width, height, size, **{"seed": 0, "index": 0, "count": 1, **draw})
    return box


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("method", ["resize_center", "center", "random"])
def test_a_crop_is_a_square_inside_the_picture(method: str, width: int, height: int) -> None:
    left, top, right, bottom = one(method, width, height)
    assert (
        right - left == bottom - top == (min(width, height) if method == "resize_center" else min(224, width, height))
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("resizer", ["the fast one", "pillow"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_resize_center_is_pillows_fit(
    width: int,
    height: int,
    resizer: str,
    photographs: Path,
    assert_fits_like_pillow: Callable[[np.ndarray, Image.Image], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if resizer == "pillow":
        monkeypatch.setattr(resize, "cykooz_resizer", None)
    image = Image.open(photographs / "coffee.png").convert("RGB").resize((width, height))
    ours = cut(Photograph(image, width, height, 1), one("resize_center", width, height), 224)  # type: ignore[arg-type]
    assert_fits_like_pillow(np.asarray(ours), image)


def test_native_resolution_copies_pixels() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    photograph = Photograph(Image.fromarray(pixels), 400, 300, 1)
    for method in ("center", "random"):
        left, top, right, bottom = map(int, one(method, 400, 300))
        crop = cut(photograph, (left, top, right, bottom), 224)
        assert (np.asarray(crop) == pixels[top:bottom, left:right]).all()
    assert shortest_decoded("center", 224) is None


def test_grid_takes_every_whole_tile_once() -> None:
    tiles = boxes("grid", 700, 500, 224, seed=0, index=0, count=1)
    assert tiles == [(x, y, x + 224, y + 224) for y, x in itertools.product((0, 224), (0, 224, 448))]
    assert boxes("grid", 223, 500, 224, seed=0, index=0, count=1) == []


def test_random_is_a_function_of_seed_file_and_number() -> None:
    def draw(seed: int, index: int, count: int) -> list[tuple[float, ...]]:
        return list(boxes("random", 640, 480, 224, seed=seed, index=index, count=count))

    assert draw(1, 2, 3) == draw(1, 2, 5)[:3]
    assert len({*draw(1, 2, 3), *draw(1, 3, 3), *draw(2, 2, 3)}) == 9
    lefts, tops = zip(*[box[:2] for box in draw(0, 0, 3000)], strict=True)
    assert (min(lefts), max(lefts), min(tops), max(tops)) == (0, 416, 0, 256)
