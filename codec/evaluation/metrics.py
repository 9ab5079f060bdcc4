"""Quality and rate of pictures: one figure per picture, never the mean of a batch."""

import torch
from pytorch_msssim import ms_ssim as _ms_ssim
from torch import Tensor

from codec.network.pixels import to_float, to_uint8

MS_SSIM_MIN_SIZE = 161
"""Shortest side of MS-SSIM: five scales, each halved, under an 11x11 window."""

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, from full size on."""

RADIUS, SIGMA = 5, 1.5
"""Of its Gaussian window, in pixels."""

C1, C2 = 0.01**2, 0.03**2
"""Its constants (K * range)^2, for pictures in [0, 1]."""


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """10 log10(255^2 / MSE) in dB of each picture after rounding to 8-bit RGB: [B, 3, H, W] in [0, 1] to [B].

    Identical pictures give inf, and so does a mean that includes one: no cap is right for every use.
    Code that averages, or that writes JSON (which has no infinity), must handle them.
    """
    difference = to_uint8(x_hat).float() - to_uint8(x).float()
    mse = difference.square().mean((1, 2, 3), dtype=torch.float64)
    return (10 * torch.log10(255**2 / mse)).float()


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor | None:
    """MS-SSIM of each picture after rounding to 8-bit RGB: [B, 3, H, W] in [0, 1] to [B], in 0..1.

    None where the short side is under 161 pixels. Source: Wang, Simoncelli and Bovik 2003, in pytorch_msssim.
    """
    if min(x.shape[-2:]) < MS_SSIM_MIN_SIZE:
        return None
    similarity: Tensor = _ms_ssim(to_float(to_uint8(x_hat)), to_float(to_uint8(x)), data_range=1.0, size_average=False)
    return similarity


def bpp(likelihoods: dict[str, Tensor], pixels_per_picture: int) -> Tensor:
    """Estimated bits per pixel of each picture, sum(-log2 likelihood) / pixels: [B, C, h, w] each to [B].

    `pixels_per_picture` is H * W of the picture itself, before any padding.
    """
    bits = [-torch.log2(likelihood.float()).sum((1, 2, 3)) for likelihood in likelihoods.values()]
    return torch.stack(bits).sum(0) / pixels_per_picture
