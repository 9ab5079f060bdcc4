"""What a codec is evaluated on: the pictures of a folder or of a prepared dataset, in batches of one size, by ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coco224.batches import EvalBatches, read_ahead
from coco224.dataset import Rows, open_rows
from coco224.photographs.decode import SUFFIXES, BadPhotograph, read_photograph
from coco224.walk import say_left_out, walk
from codec.errors import InputError

_READERS = 2  # threads that decode ahead of the codec

CROP_PIXELS = 224 * 224
"""A batch of pictures has at most as many pixels as a batch of crops."""

Batches = Iterator[tuple[Sequence[int], Tensor]]
"""The indices of B pictures, and uint8 [B, 3, H, W]."""


@dataclass(frozen=True)
class Pictures:
    """Names, and how to read a rank's share of them: `read(rank, world_size)`, each picture once over all ranks."""

    title: str
    names: list[str]
    read: Callable[[int, int], Batches]


def open_pictures(images: str | None, coco_dir: str | None, use_prepared: bool, batch_size: int) -> Pictures:
    """The pictures of a folder, one picture, or a dataset's validation split (training split where there is no other).

    Args:
        images, coco_dir: one of the two.
        batch_size: in crops of 224x224.

    Raises:
        InputError, DataError: there is nothing to evaluate on.
    """
    if images:
        root = Path(images)
        if not root.exists():
            raise InputError(f"--images {root} does not exist; give a picture, or a folder that holds some")
        paths = [root]
        if root.is_dir():
            found = walk(root, SUFFIXES)
            say_left_out(root, found.left_out)
            paths = [root / name for name, _ in found.files]
        if not paths:
            raise InputError(f"--images {root}: no picture there; give a picture, or a folder that holds some")
        return Pictures(str(root), [str(path) for path in paths], partial(_read_files, paths, batch_size))
    assert coco_dir
    for split in ("validation", "train"):
        rows = open_rows(coco_dir, split, use_prepared)
        if rows is not None:
            names = rows.names(range(len(rows)))
            return Pictures(f"{coco_dir} {split}", names, partial(_read_rows, rows, batch_size))
    raise InputError(f"--coco_dir {coco_dir} has neither a validation nor a train split")


def _read_rows(rows: Rows, batch_size: int, rank: int, world_size: int) -> Batches:
    return ((batch.rows.tolist(), batch.images) for batch in EvalBatches(rows, batch_size, rank, world_size))


def _read_files(paths: list[Path], batch_size: int, rank: int, world_size: int) -> Batches:
    """Pictures of one size wait for each other until a batch is full, but never more than two batches of them."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    mine = range(rank, len(paths), world_size)
    for index, picture in zip(mine, read_ahead(_read, (paths[i] for i in mine), _READERS), strict=True):
        alike = waiting.setdefault(picture.shape, [])
        alike.append((index, picture))
        if (len(alike) + 1) * picture[0].numel() > batch_size * CROP_PIXELS:
            yield _batch(waiting.pop(picture.shape))
        elif sum(len(pictures) * shape.numel() for shape, pictures in waiting.items()) > 6 * batch_size * CROP_PIXELS:
            yield _batch(waiting.pop(next(iter(waiting))))  # those that have waited longest
    for pictures in waiting.values():
        yield _batch(pictures)


def _batch(pictures: list[tuple[int, Tensor]]) -> tuple[Sequence[int], Tensor]:
    return [index for index, _ in pictures], torch.stack([picture for _, picture in pictures])


def _read(path: Path) -> Tensor:
    try:
        pixels = np.array(read_photograph(path).image)
    except BadPhotograph as error:
        raise InputError(f"--images: {path} is no picture ({error}); take it out") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
