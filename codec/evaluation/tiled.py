"""The figures of one large picture in tiles: the float copies of a full picture take twelve times its bytes."""

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.evaluation.metrics import C1, C2, MS_SSIM_MIN_SIZE, RADIUS, SCALES, SIGMA

_PIXELS = 2**15
"""About so many pixels are in float at a time: their copies stay in the processor's cache."""

_WINDOW = 2 * RADIUS + 1


def in_tiles(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """PSNR, MS-SSIM (None where a side is too short) and mean absolute difference of uint8 pictures [3, H, W].

    The values are those of `codec.evaluation.metrics`; another order of sums changes the last digits.
    """
    squares = absolute = 0
    for tile in _tiles(*x.shape[1:]):
        difference = x[:, *tile].int() - x_hat[:, *tile].int()
        squares += int(difference.square().sum())
        absolute += int(difference.abs().sum())
    psnr = 10 * torch.log10(255**2 / torch.tensor(squares / x.numel(), dtype=torch.float64))
    similarity = None
    if min(x.shape[1:]) >= MS_SSIM_MIN_SIZE:
        similarity = torch.stack([_ms_ssim(a, b) for a, b in zip(x, x_hat, strict=True)]).mean()
    return psnr.float(), similarity, torch.tensor(absolute / x.numel() / 255)


def _tiles(height: int, width: int, more: int = 0) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of squares that cover a picture; each has `more` rows and columns of the next ones."""
    side = max(1, math.isqrt(_PIXELS))
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        yield slice(top, top + side + more), slice(left, left + side + more)


def _ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of one channel [H, W]. Source: Wang, Simoncelli and Bovik 2003."""
    factors = []
    for scale in range(len(SCALES)):
        last = scale == len(SCALES) - 1
        factors.append(_ssim(x, y, with_luminance=last))
        if not last:
            x = _halved(x)  # the former x is free before y is halved
            y = _halved(y)
    return torch.stack(factors).relu().pow(torch.tensor(SCALES, device=x.device)).prod()


def _ssim(x: Tensor, y: Tensor, with_luminance: bool) -> Tensor:
    """The mean of SSIM, or of only its contrast and structure, over all windows inside the picture."""
    height, width = x.shape[0] - _WINDOW + 1, x.shape[1] - _WINDOW + 1
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for tile in _tiles(height, width, more=_WINDOW - 1):
        a, b = _float(x[tile]), _float(y[tile])
        mean_a, mean_b, aa, bb, ab = _blurred(torch.stack([a, b, a * a, b * b, a * b])[:, None])
        found = (2 * (ab - mean_a * mean_b) + C2) / (aa - mean_a.square() + bb - mean_b.square() + C2)
        if with_luminance:
            found *= (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
        total += found.sum(dtype=torch.float64)
    return (total / (height * width)).float()


def _blurred(x: Tensor) -> Tensor:
    taps = torch.arange(_WINDOW, dtype=torch.float32, device=x.device) - RADIUS
    window = torch.exp(-taps.square() / (2 * SIGMA**2))
    window /= window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 values; a side of odd length is padded with a zero at its start, as in pytorch_msssim."""
    (height, width), (top, left) = x.shape, (side % 2 for side in x.shape)
    halved = torch.empty(((height + top) // 2, (width + left) // 2), device=x.device)
    for rows, columns in _tiles(*halved.shape):
        first, start = (2 * each.start - odd for each, odd in ((rows, top), (columns, left)))
        inside = _float(x[max(0, first) : 2 * rows.stop - top, max(0, start) : 2 * columns.stop - left])
        padded = F.pad(inside, (max(0, -start), 0, max(0, -first), 0))
        halved[rows, columns] = F.avg_pool2d(padded[None, None], 2)[0, 0]
    return halved


def _float(x: Tensor) -> Tensor:
    return x.float().div_(255) if x.dtype == torch.uint8 else x
