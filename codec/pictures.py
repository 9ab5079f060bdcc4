"""Pictures, as the programs that convert files read and write them. Needs no torch; Pillow loads with the first one."""

from pathlib import Path
from typing import TYPE_CHECKING

from coco224.files import whole_or_absent
from codec.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_pixels(path: Path) -> "NDArray[np.uint8]":
    """A JPEG, PNG, BMP or WebP picture as upright RGB, [H, W, 3]; InputError if it is not a picture."""
    from coco224.photographs.decode import BadPhotograph, read_photograph

    try:
        return read_photograph(path).pixels()
    except BadPhotograph as error:
        raise InputError(f"not a picture: {error}") from error


def write_pixels(path: Path, pixels: "NDArray[np.uint8]") -> None:
    """Writes pixels [H, W, 3], completely or not at all; the suffix of the path says in which format."""
    from PIL import Image

    with whole_or_absent(path) as beside:
        Image.fromarray(pixels).save(beside, Image.registered_extensions()[path.suffix.lower()])
