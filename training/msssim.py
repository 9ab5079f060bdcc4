"""MS-SSIM for training: the same value as pytorch_msssim's, in a fraction of its time."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.evaluation.metrics import C1, C2, MS_SSIM_MIN_SIZE, RADIUS, SCALES, SIGMA

_BELL = [math.exp(-(i**2) / (2 * SIGMA**2)) for i in range(-RADIUS, RADIUS + 1)]
WINDOW = tuple(value / sum(_BELL) for value in _BELL)


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale SSIM of each channel of each picture [B, C]; x_hat, x float [B, C, H, W] in [0, 1], sides over 160.

    Source: Wang, Simoncelli and Bovik 2003. As in pytorch_msssim: an 11x11 Gaussian of sigma 1.5 without padding, five
    scales halved by averaging, negative similarities set to 0. It is faster, because the three maps that need
    a gradient are blurred at once, and because the blur is a sum of shifted pictures, which compiles to one loop.
    """
    assert min(x.shape[-2:]) >= MS_SSIM_MIN_SIZE, "sides must be larger than 160, or nothing is left of the fifth scale"
    similarities = []
    for scale in range(len(SCALES)):
        mean_hat, squares, product = Blur.apply(torch.stack([x_hat, x_hat * x_hat + x * x, x_hat * x])).unbind()
        mean = blur(x)
        means, mean_squares = mean_hat * mean, mean_hat * mean_hat + mean * mean
        similarity = (2 * (product - means) + C2) / (squares - mean_squares + C2)
        if scale == len(SCALES) - 1:
            similarity = similarity * (2 * means + C1) / (mean_squares + C1)
        else:
            odd = [side % 2 for side in x.shape[-2:]]
            x_hat, x = (F.avg_pool2d(each, 2, padding=odd) for each in (x_hat, x))
        similarities.append(similarity.mean((-1, -2)).relu() ** SCALES[scale])
    return torch.stack(similarities).prod(0)


class Blur(torch.autograd.Function):
    """`blur` with a short backward: the window is symmetric, so it is the same blur of the padded gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return blur(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return blur(F.pad(gradient, [2 * RADIUS] * 4))


def blur(x: Tensor) -> Tensor:
    """The Gaussian window over the last two dimensions, without padding: each side loses 10."""
    return _along(_along(x, -2), -1)


def _along(x: Tensor, dim: int) -> Tensor:
    length = x.shape[dim] - 2 * RADIUS
    y = x.narrow(dim, 0, length) * WINDOW[0]
    for i, weight in enumerate(WINDOW[1:], 1):
        y.add_(x.narrow(dim, i, length), alpha=weight)
    return y
