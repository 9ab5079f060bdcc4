"""The geometry of crops, and the function that cuts them.

A box is (left, top, right, bottom) in pixels of the upright source, like PIL's `box`. It is always square, and
cutting scales it to size x size. So every method gives a list of boxes, and the box in a row fully describes its crop.
"""

import numpy as np
from PIL import Image

from coco224.photographs.decode import Photograph
from coco224.photographs.resize import bicubic

METHODS = ("resize_center", "center", "random", "grid")
Box = tuple[float, float, float, float]

# A JPEG is decoded at a reduced size only if at least this many decoded pixels remain per pixel of the crop's side.
# On COCO crops of 64 to 112, with 2 every crop has over 40 dB against the full-size decode; with 1.5 and 1 not.
_DECODED_PER_PIXEL = 2


def boxes(method: str, width: int, height: int, size: int, *, seed: int, index: int, count: int) -> list[Box]:
    """The crops of one picture of `width` x `height` pixels.

    `resize_center` takes the largest centred square (as `ImageOps.fit` does); the others take size x size pixels
    at native resolution. If the picture is smaller, `center` and `random` take a square of its short side, which
    is scaled up, and `grid` takes nothing.

    Args:
        method: one of `METHODS`.
        size: side of the crop in pixels.
        seed, index: `random` depends only on these and the crop's number, not on the order of work.
        count: number of crops that `random` takes.
    """
    short = min(width, height)
    side = min(size, short)
    match method:
        case "resize_center":
            left, top = (width - short) / 2, (height - short) / 2
            return [(left, top, left + short, top + short)]
        case "center":
            return [_square((width - side) // 2, (height - side) // 2, side)]
        case "random":
            draws = (np.random.default_rng([seed, index, crop]) for crop in range(count))
            return [
                _square(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)
                for rng in draws
            ]
        case "grid":
            tops, lefts = range(0, height - size + 1, size), range(0, width - size + 1, size)
            return [_square(left, top, size) for top in tops for left in lefts]
    raise ValueError(method)


def shortest_decoded(method: str, size: int) -> int | None:
    """Pixels that the short side of a JPEG must keep if it is decoded at a reduced size; None: no reduction."""
    return _DECODED_PER_PIXEL * size if method == "resize_center" else None


def cut(photograph: Photograph, box: Box, size: int) -> Image.Image:
    """The box as a size x size RGB picture: copied if the scale is 1, otherwise antialiased bicubic."""
    if photograph.reduction == 1 and box[2] - box[0] == size and all(edge == int(edge) for edge in box):
        return photograph.image.crop(tuple(int(edge) for edge in box))  # type: ignore[arg-type]
    left, top, right, bottom = (edge / photograph.reduction for edge in box)
    return bicubic(photograph.image, (left, top, right, bottom), size)


def _square(left: int, top: int, side: int) -> Box:
    return left, top, left + side, top + side
