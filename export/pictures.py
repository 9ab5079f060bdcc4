"""Real pictures for the export: one to check with, and a folder's to calibrate on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coco224.photographs.crops import boxes, cut
from coco224.photographs.decode import SUFFIXES, BadPhotograph, Photograph, read_photograph
from coco224.photographs.sample import VALIDATION, sample_splits
from coco224.walk import Found, say_left_out, walk
from codec.errors import InputError
from codec.network.pixels import to_float


def sample_picture(size: int) -> Tensor:
    """The embedded validation photograph, float [1, 3, size, size] in [0, 1]."""
    folder = sample_splits(include_val=True)["validation"].folder
    return _square(read_photograph(folder / VALIDATION[0]), size)


def calibration_pictures(folder: Path, size: int) -> Iterator[Tensor]:
    """The pictures of a folder, float [1, 3, size, size] in [0, 1] each, the largest centred square scaled.

    Raises:
        InputError: there is no picture, or a file that is none.
    """
    found = walk(folder, SUFFIXES) if folder.is_dir() else Found()
    if not found.files:
        raise InputError(f"--calib_dir {folder}: no picture there; give a folder of photographs")
    say_left_out(folder, found.left_out)
    for name, _ in found.files:
        try:
            yield _square(read_photograph(folder / name, 2 * size), size)
        except BadPhotograph as error:
            raise InputError(f"--calib_dir: {folder / name} is no picture ({error}); take it out") from error


def _square(photograph: Photograph, size: int) -> Tensor:
    (box,) = boxes("resize_center", photograph.width, photograph.height, size, seed=0, index=0, count=1)
    pixels = np.array(cut(photograph, box, size))
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1)[None])
