"""The pictures for an evaluation: of a folder or of a prepared dataset, in batches of one size, shared among ranks."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from coco224.batches import EvalBatches, read_ahead
from coco224.dataset import Rows, open_rows
from coco224.files import open_regular
from coco224.photographs.decode import FORMATS, SUFFIXES, BadPhotograph, read_photograph
from coco224.walk import say_left_out, walk
from codec.bitstream.container import check_size
from codec.errors import InputError

_READERS = 2  # threads that decode ahead of the codec
_MOST_AHEAD = 2**22  # these threads decode only pictures of at most so many pixels

CROP_PIXELS = 224 * 224
"""A batch of pictures has at most as many pixels as a batch of crops."""

Batches = Iterator[tuple[Sequence[int], Tensor]]
"""Indices of B pictures, and the pictures, uint8 [B, 3, H, W]."""

Failures = dict[int, str]
"""Indices of pictures that cannot be evaluated, and the reasons."""


@dataclass(frozen=True)
class Pictures:
    """The names of pictures, and a function that reads a rank's share.

    Attributes:
        reader: the function; its arguments are those of `read`.
        files: the pictures' files, if every picture is a file.
        fingerprint: identifies the rows of a dataset.
    """

    title: str
    names: list[str]
    reader: Callable[[int, int, Failures | None], Batches]
    files: Sequence[Path] = ()
    fingerprint: str = ""

    def read(self, rank: int, world_size: int, failures: Failures | None = None) -> Batches:
        """A rank's share; all ranks together read each picture once.

        Args:
            failures: pictures to pass over; files that are no pictures are added. None: such a file is an InputError.
        """
        return self.reader(rank, world_size, failures)


def open_pictures(images: str | None, coco_dir: str | None, use_prepared: bool, batch_size: int) -> Pictures:
    """The pictures of a folder, one picture, or a dataset's validation split (or training split if it has no other).

    Args:
        images, coco_dir: exactly one of the two.
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
        return Pictures(str(root), [str(path) for path in paths], partial(_read_files, paths, batch_size), paths)
    assert coco_dir
    for split in ("validation", "train"):
        rows = open_rows(coco_dir, split, use_prepared)
        if rows is not None:
            names = rows.names(range(len(rows)))
            reader = partial(_read_rows, rows, batch_size)
            return Pictures(f"{coco_dir} {split}", names, reader, fingerprint=rows.fingerprint)
    raise InputError(f"--coco_dir {coco_dir} has neither a validation nor a train split")


def _read_rows(rows: Rows, batch_size: int, rank: int, world_size: int, failures: Failures | None) -> Batches:
    del failures  # a dataset that holds no pictures is refused as a whole
    return ((batch.rows.tolist(), batch.images) for batch in EvalBatches(rows, batch_size, rank, world_size))


def _read_files(paths: list[Path], batch_size: int, rank: int, world_size: int, failures: Failures | None) -> Batches:
    """Batches of equal-sized pictures: these wait until a batch is full, but never more than two batches wait."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    mine = [index for index in range(rank, len(paths), world_size) if index not in (failures or {})]
    for index, picture in zip(mine, _in_turn([paths[i] for i in mine]), strict=True):
        if isinstance(picture, str):
            if failures is None:
                raise InputError(f"{paths[index]}: {picture}")
            failures[index] = picture
            continue
        alike = waiting.setdefault(picture.shape, [])
        alike.append((index, picture))
        if (len(alike) + 1) * picture[0].numel() > batch_size * CROP_PIXELS:
            yield _batch(waiting.pop(picture.shape))
        elif sum(len(pictures) * shape.numel() for shape, pictures in waiting.items()) > 6 * batch_size * CROP_PIXELS:
            yield _batch(waiting.pop(next(iter(waiting))))  # the pictures that have waited longest
    for pictures in waiting.values():
        yield _batch(pictures)


def _in_turn(paths: Sequence[Path]) -> Iterator[Tensor | str]:
    """The pictures in order, or the reasons why they are none, read ahead.

    A large picture is read only when it is next, so that memory holds one at a time.
    """
    for large, group in itertools.groupby(paths, _is_large):
        if large:
            yield from map(_read, group)
        else:
            yield from read_ahead(_read, group, _READERS)


def _is_large(path: Path) -> bool:
    with contextlib.suppress(Exception), open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        return image.width * image.height > _MOST_AHEAD
    return False  # reading it later gives the error


def _batch(pictures: list[tuple[int, Tensor]]) -> tuple[Sequence[int], Tensor]:
    indices = [index for index, _ in pictures]
    if len(pictures) == 1:
        return indices, pictures[0][1][None]  # no copy of a large picture
    return indices, torch.stack([picture for _, picture in pictures])


def _read(path: Path) -> Tensor | str:
    try:
        pixels = read_photograph(path).pixels()
        check_size(*pixels.shape[:2])
    except BadPhotograph as error:
        return f"not a picture ({error}); take it out"
    except InputError as error:
        return f"{error}; take it out"
    return torch.from_numpy(pixels).permute(2, 0, 1)
