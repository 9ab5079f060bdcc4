"""A channel in n splits: n channels of the chip whose integers sum to one that has log2 n bits more."""

import torch
import torch.nn.functional as F
from torch import Tensor


def offset(place: Tensor | int, splits: Tensor) -> Tensor:
    """What a split adds before it rounds: -1/4 and 1/4 for two, -3/8 to 3/8 for four.

    The sum over places of round(x + offset) is round(splits * x) (Hermite's identity).
    """
    return (2 * place + 1 - splits) / (2 * splits)


def channels(splits: Tensor) -> Tensor:
    """For each of the chip's channels the channel of y that it holds."""
    return torch.repeat_interleave(torch.arange(len(splits), device=splits.device), splits)


def places(splits: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the chip's channels the channel of y that it holds, and its place among the splits of this one."""
    channel = channels(splits)
    return channel, torch.arange(len(channel), device=splits.device) - (splits.cumsum(0) - splits)[channel]


def apart(level: Tensor, splits: Tensor) -> Tensor:
    """Levels [B, M, H, W] as the chip takes them, [B, sum of splits, H, W]: each is the sum of its splits.

    The integers of weights [out, M, kh, kw] too, which the chip multiplies the splits by.
    """
    channel, place = places(splits)
    return torch.floor((level[:, channel] + place.view(-1, 1, 1)) / splits[channel].view(-1, 1, 1))


def together(parts: Tensor, splits: Tensor) -> Tensor:
    """Levels [B, M, H, W] from those that the chip gives, [B, sum of splits, H, W]."""
    sums = F.one_hot(channels(splits), len(splits)).T.to(parts)
    return F.conv2d(parts, sums[:, :, None, None])
