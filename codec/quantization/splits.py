"""A channel in n splits: n channels of the chip whose integers sum to one that has log2 n bits more."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = -128, 127
"""The integers of a channel of the chip."""


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
    """Levels [B, M, H, W] as the chip takes them, [B, sum of splits, H, W]: each is the sum of its splits."""
    channel, place = places(splits)
    return part(level[:, channel], place.view(-1, 1, 1), splits[channel].view(-1, 1, 1))


def part(level: Tensor, place: Tensor, splits: Tensor) -> Tensor:
    """What a split holds of a level, by its place."""
    return torch.floor((level + place) / splits)


def middle(splits: Tensor) -> Tensor:
    """The place of the split whose weights differ from those of the others."""
    return splits // 2


def shared_and_more(sums: Tensor, splits: Tensor) -> tuple[Tensor, Tensor]:
    """The integer weights of the splits, from the sums of these.

    All splits have the same weight, and the one in the middle has some more: a graph of fixed shapes can compute with
    that, whatever the splits are. All of them are in -128..127, if the mean of the splits is.

    Args:
        sums: integers.
        splits: broadcasts over them.

    Returns:
        The weight of every split, and what the one in the middle has more.
    """
    shared = (sums / splits).round()
    of_middle = sums - (splits - 1) * shared
    shared = shared + (of_middle > HIGHEST).to(shared) - (of_middle < LOWEST).to(shared)
    return shared, sums - splits * shared


def together(parts: Tensor, splits: Tensor) -> Tensor:
    """Levels [B, M, H, W] from those that the chip gives, [B, sum of splits, H, W]."""
    sums = F.one_hot(channels(splits), len(splits)).T.to(parts)
    return F.conv2d(parts, sums[:, :, None, None])
