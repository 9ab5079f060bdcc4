"""Conversion of pixels for a codec's input and output."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.description.architecture import STRIDE


def to_float(
    images: Tensor, device: torch.device | None = None, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Converts uint8 pictures [..., H, W] to float32 in [0, 1], on the device, in the given memory format."""
    pictures = images.to(device, non_blocking=True)
    return pictures.to(torch.float32, memory_format=memory_format).div_(255)


def to_uint8(x: Tensor) -> Tensor:
    """Converts x in [0, 1], of any float type and shape, to 0..255: clamps, scales by 255, rounds to nearest."""
    return x.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def pad(x: Tensor) -> Tensor:
    """Extends [B, 3, H, W] to multiples of 16 at the right and bottom by repeating the last pixels."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
