"""What a codec does to pictures: one row of figures a picture, averaged over pictures and never over batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.metrics import bpp, ms_ssim, psnr
from codec.model import STRIDE, Codec


@dataclass(frozen=True)
class Figures:
    """One picture's figures.

    Attributes:
        psnr: dB, from 8-bit RGB.
        ms_ssim: from 8-bit RGB; None where the short side is under 161 pixels, MS-SSIM's minimum.
        l1: mean absolute difference of the pictures in [0, 1].
        bpp_estimated: bits per pixel of the picture, by the likelihoods of its symbols.
    """

    psnr: float
    ms_ssim: float | None
    l1: float
    bpp_estimated: float


@torch.inference_mode()
def evaluate(
    codec: Codec,
    batches: Iterable[Tensor],
    device: torch.device,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> Iterator[Figures]:
    """Codes and decodes pictures in FP32 with rounded symbols.

    Args:
        codec: from `with_tables` or a checkpoint, on `device`.
        batches: uint8 [B, 3, H, W] each, any H and W; a batch of one where sizes differ.
        on_batch: is given x and x_hat, float [B, 3, H, W] in [0, 1].

    Yields:
        One `Figures` a picture, in order.
    """
    for batch in batches:
        x = batch.to(device, non_blocking=True).float().div_(255)
        padded = pad(x)
        out = codec(padded)
        height, width = x.shape[-2:]
        x_hat = out["x_hat"][..., :height, :width].clamp(0, 1)
        if on_batch:
            on_batch(x, x_hat)
        similarity = ms_ssim(x_hat, x)
        rows = [psnr(x_hat, x), (x_hat - x).abs().mean((1, 2, 3)), bpp(out["likelihoods"], height * width)]
        rows += [] if similarity is None else [similarity]
        for p, l1, rate, *s in torch.stack(rows, 1).tolist():
            yield Figures(p, s[0] if s else None, l1, rate)


def pad(x: Tensor) -> Tensor:
    """Extends [B, 3, H, W] to multiples of 16 at the right and bottom by repeating the last pixels."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
