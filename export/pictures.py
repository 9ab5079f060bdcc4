"""Real pictures for the export: one for checks, and a folder of pictures for calibration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from coco224.photographs.crops import boxes, cut
from coco224.photographs.decode import SUFFIXES, BadPhotograph, Photograph, read_photograph
from coco224.photographs.sample import VALIDATION, sample_splits
from coco224.walk import Found, say_left_out, walk
from codec.errors import InputError
from codec.network.pixels import to_float


def sample_picture(height: int, width: int | None = None) -> Tensor:
    """The embedded validation photograph, float [1, 3, height, width] in [0, 1]; square if only one side is given."""
    folder = sample_splits(include_val=True)["validation"].folder
    return _cut(read_photograph(folder / VALIDATION[0]), height, width or height)


def calibration_pictures(folder: Path, height: int, width: int) -> Iterator[Tensor]:
    """The pictures of a folder, each float [1, 3, height, width] in [0, 1]: the largest centred part, scaled.

    Raises:
        InputError: there is no picture, or a file is damaged.
    """
    found = walk(folder, SUFFIXES) if folder.is_dir() else Found()
    if not found.files:
        raise InputError(f"--calib_dir {folder}: no picture there; give a folder of photographs")
    say_left_out(folder, found.left_out)
    for name, _ in found.files:
        try:
            yield _cut(read_photograph(folder / name, 2 * max(height, width)), height, width)
        except BadPhotograph as error:
            raise InputError(f"--calib_dir: {folder / name} is no picture ({error}); take it out") from error


def _cut(photograph: Photograph, height: int, width: int) -> Tensor:
    if height == width:
        (box,) = boxes("resize_center", photograph.width, photograph.height, height, seed=0, index=0, count=1)
        image = cut(photograph, box, height)
    else:
        image = ImageOps.fit(photograph.image, (width, height), Image.Resampling.BICUBIC)
    return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
