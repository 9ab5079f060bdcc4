"""The figures of one large picture, some rows at a time: the float copies of a picture take twelve times its bytes."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.evaluation.metrics import MS_SSIM_MIN_SIZE

_PIXELS = 2**18
"""About so many pixels are in float at a time."""

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def in_strips(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """PSNR, MS-SSIM (None where a side is too short) and mean absolute difference of uint8 pictures [3, H, W].

    The values are those of `codec.evaluation.metrics`; another order of sums changes the last digits.
    """
    squares = absolute = 0
    for rows in _strips(x.shape[1], x.shape[2]):
        difference = x[:, rows].int() - x_hat[:, rows].int()
        squares += int(difference.square().sum())
        absolute += int(difference.abs().sum())
    psnr = 10 * torch.log10(255**2 / torch.tensor(squares / x.numel(), dtype=torch.float64))
    similarity = None
    if min(x.shape[1:]) >= MS_SSIM_MIN_SIZE:
        similarity = torch.stack([_ms_ssim(a, b) for a, b in zip(x, x_hat, strict=True)]).mean()
    return psnr.float(), similarity, torch.tensor(absolute / x.numel() / 255)


def _strips(height: int, width: int) -> Iterator[slice]:
    rows = 2 * max(1, _PIXELS // (2 * width))  # even: every strip begins with a pair of rows
    return (slice(first, first + rows) for first in range(0, height, rows))


def _ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of one channel [H, W]. Source: Wang, Simoncelli and Bovik 2003."""
    factors = []
    for scale in range(len(_WEIGHTS)):
        last = scale == len(_WEIGHTS) - 1
        factors.append(_ssim(x, y, with_luminance=last))
        if not last:
            x, y = _halved(x), _halved(y)
    return torch.stack(factors).relu().pow(torch.tensor(_WEIGHTS, device=x.device)).prod()


def _ssim(x: Tensor, y: Tensor, with_luminance: bool) -> Tensor:
    """The mean of SSIM, or of only its contrast and structure, over all windows inside the picture."""
    height, width = x.shape[0] - _WINDOW + 1, x.shape[1] - _WINDOW + 1
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in _strips(height, width):
        a, b = (_float(each[rows.start : rows.stop + _WINDOW - 1]) for each in (x, y))
        mean_a, mean_b, aa, bb, ab = _blurred(torch.stack([a, b, a * a, b * b, a * b])[:, None])
        found = (2 * (ab - mean_a * mean_b) + _C2) / (aa - mean_a.square() + bb - mean_b.square() + _C2)
        if with_luminance:
            found *= (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
        total += found.sum(dtype=torch.float64)
    return (total / (height * width)).float()


def _blurred(x: Tensor) -> Tensor:
    taps = torch.arange(_WINDOW, dtype=torch.float32, device=x.device) - _WINDOW // 2
    window = torch.exp(-taps.square() / (2 * _SIGMA**2))
    window /= window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 values; a side of odd length is padded with zeros on both ends, as in pytorch_msssim."""
    odd = [side % 2 for side in x.shape]
    strips = []
    for rows in _strips(x.shape[0] + 2 * odd[0], x.shape[1]):
        first, end = rows.start - odd[0], min(rows.stop - odd[0], x.shape[0] + odd[0])
        inside = _float(x[max(0, first) : min(end, x.shape[0])])
        padded = F.pad(inside, (odd[1], odd[1], max(0, -first), max(0, end - x.shape[0])))
        strips.append(F.avg_pool2d(padded[None, None], 2)[0, 0])
    return torch.cat(strips)


def _float(x: Tensor) -> Tensor:
    return x.float().div_(255) if x.dtype == torch.uint8 else x
