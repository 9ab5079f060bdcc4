"""Where the crops of a picture lie: pure geometry, and the one function that cuts.

A box is (left, top, right, bottom) in pixels of the upright source, PIL's `box`; it is always square, and
cutting it scales it to size x size. So every method is a list of boxes, and a row's box says all about its crop.
"""

import numpy as np
from PIL import Image

from coco224.photographs.decode import Photograph
from coco224.photographs.resize import bicubic

METHODS = ("resize_center", "center", "random", "grid")
Box = tuple[float, float, float, float]

# A JPEG is decoded at a fraction of its size only while this many decoded pixels remain for one of the crop:
# measured on COCO crops of 64 to 112, 2 keeps each over 40 dB from that of the whole picture, 1.5 and 1 do not.
_DECODED_PER_PIXEL = 2


def boxes(method: str, width: int, height: int, size: int, *, seed: int, index: int, count: int) -> list[Box]:
    """The crops of one picture of `width` x `height` pixels.

    `resize_center` takes the largest centred square (what `ImageOps.fit` takes), the others size x size pixels
    at native resolution; where the picture is smaller, `center` and `random` take a square of its short side,
    which is the picture scaled up until it just covers, and `grid` takes nothing.

    Args:
        method: one of `METHODS`.
        size: side of the crop in pixels.
        seed, index: `random` draws from these and the crop's number alone: no order of work changes it.
        count: how many crops `random` takes.
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
    """How many pixels a JPEG that is decoded reduced must keep on its short side; None: it must not be reduced."""
    return _DECODED_PER_PIXEL * size if method == "resize_center" else None


def cut(photograph: Photograph, box: Box, size: int) -> Image.Image:
    """The box as a size x size RGB picture: copied where nothing is scaled, antialiased bicubic elsewhere."""
    if photograph.reduction == 1 and box[2] - box[0] == size and all(edge == int(edge) for edge in box):
        return photograph.image.crop(tuple(int(edge) for edge in box))  # type: ignore[arg-type]
    left, top, right, bottom = (edge / photograph.reduction for edge in box)
    return bicubic(photograph.image, (left, top, right, bottom), size)


def _square(left: int, top: int, side: int) -> Box:
    return left, top, left + side, top + side
