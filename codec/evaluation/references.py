"""JPEG, WebP and AVIF through Pillow, to compare with."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, features

from codec.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from torch import Tensor

    from codec.evaluation.coded import Decoded

QUALITIES = {
    "jpeg": (5, 10, 20, 30, 45, 60, 75, 85, 92),
    "webp": (1, 10, 25, 45, 65, 80, 90),
    "avif": (10, 25, 40, 55, 65, 75, 85),
}
"""Pillow's `quality` at each point of a curve: about 0.15 to 2 bpp on photographs."""


def check_format(name: str) -> None:
    """InputError where this Pillow cannot write the format."""
    if not features.check({"jpeg": "jpg"}.get(name, name)):
        raise InputError(f"--reference {name}: this Pillow has no {name.upper()}; install Pillow's own wheel")


def through_pillow(
    name: str, quality: int, batches: Iterable[tuple[Sequence[int], Tensor]], device: torch.device
) -> Iterator[Decoded]:
    """Pictures as their files give them back, coded with Pillow's other settings as they are.

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


def _encode(picture: Tensor, name: str, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, name, quality=quality)
    return file.getvalue()


def _decode(file: bytes) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB"))).permute(2, 0, 1)
