"""References: JPEG, WebP and AVIF with Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, features

from coco224.files import open_regular
from coco224.photographs.decode import FORMATS
from codec.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from codec.evaluation.coded import Decoded

QUALITIES = {
    "jpeg": (5, 10, 20, 30, 45, 60, 75, 85, 92),
    "webp": (1, 10, 25, 45, 65, 80, 90),
    "avif": (10, 25, 40, 55, 65, 75, 85),
}
"""Pillow's `quality` at each point of a curve: about 0.15 to 2 bpp on photographs."""

LONGEST_SIDE = {"jpeg": 65500, "webp": 16383, "avif": 32768}
"""Longest side in pixels that a format's library can write and read."""

BEST_QUALITY = 95
"""Pillow's largest `quality` that is not for lossless files or wasteful."""


def check_format(name: str) -> None:
    """Raises InputError if this Pillow cannot write the format."""
    if not features.check({"jpeg": "jpg"}.get(name, name)):
        raise InputError(f"--reference {name}: this Pillow has no {name.upper()}; install Pillow's own wheel")


def check_sides(name: str, files: Sequence[Path]) -> None:
    """Raises InputError for a picture whose size, in its header, is too large for the format. Skips other files."""
    for path in files:
        try:
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                side = max(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # reading the picture gives the error
        if side > LONGEST_SIDE[name]:
            raise InputError(
                f"--reference {name}: {path} has a side of {side} pixels and {name.upper()} takes "
                f"{LONGEST_SIDE[name]}; take it out, or leave {name} out"
            )


def through_pillow(
    name: str, quality: int, batches: Iterable[tuple[Sequence[int], Tensor]], device: torch.device
) -> Iterator[Decoded]:
    """Compresses and decompresses pictures; all settings but the quality are Pillow's defaults.

    Args:
        batches: indices, and uint8 [B, 3, H, W].
        device: where the figures are computed.
    """
    import torch

    from codec.evaluation.coded import Decoded
    from codec.evaluation.figures import measure_pictures

    for indices, x in batches:
        files = [_encode(picture, name, quality) for picture in x]
        x_hat = torch.stack([_decode(file) for file in files])
        rows = measure_pictures(x.to(device), x_hat.to(device), None, files)
        for decoded in zip(indices, rows, x, x_hat, strict=True):
            yield Decoded(*decoded)


def within(name: str, picture: Tensor, limit: int) -> tuple[bytes, Tensor]:
    """The best file of at most `limit` bytes, or the smallest, and what it decodes to.

    A JPEG gets Huffman tables of its own; all other settings are Pillow's defaults.

    Args:
        picture: uint8 [3, H, W].

    Returns:
        The file, and uint8 [3, H, W].
    """
    settings = {"optimize": True} if name == "jpeg" else {}
    low, high = 1, BEST_QUALITY  # the size grows with the quality, but for a few bytes
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(_encode(picture, name, middle, **settings)) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    file = _encode(picture, name, low, **settings)
    return file, _decode(file)


def _encode(picture: Tensor, name: str, quality: int, **settings: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, name, quality=quality, **settings)
    return file.getvalue()


def _decode(file: bytes) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB"))).permute(2, 0, 1)
