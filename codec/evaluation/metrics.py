"""How good a picture is and what it costs: one figure a picture, never a batch's mean."""

import torch
from pytorch_msssim import ms_ssim as _ms_ssim
from torch import Tensor

from codec.network.pixels import to_float, to_uint8

MS_SSIM_MIN_SIZE = 161
"""Shortest side of MS-SSIM: five scales, each halved, under an 11x11 window."""


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """10 log10(255^2 / MSE) in dB of each picture after rounding to 8-bit RGB: [B, 3, H, W] in [0, 1] to [B].

    Identical pictures give inf, and so does a mean with one of them in it: no cap is right for every use.
    Whoever averages, or writes JSON (which has no infinity), has to say what becomes of them.
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
