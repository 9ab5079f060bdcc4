"""The rate that each picture of a step trains, for a codec of several rates."""

import torch
from torch import Tensor

from codec.network.bottleneck import noise_keys

_GOLDEN = 0x9E3779B9
"""2^32 over the golden ratio: its multiples, modulo 2^32, lie evenly spread."""


def drawn_rates(rates: int, seed: int, step: int, places: Tensor) -> Tensor | None:
    """A rate within 0..1 for each picture: a function of seed, optimizer step and place in the global batch.

    Every interval between the trained rates is as likely as every other; the lowest and the highest rate themselves
    have a chance of 1 / (2 rates). The rates of a batch are evenly spread, so that every step sees all of them.

    Args:
        rates: the number of trained rates.
        step: 0-based.
        places: int64 [B], the pictures' places in the global batch.

    Returns:
        float32 [B]; None if the codec has one rate.
    """
    if rates == 1:
        return None
    start = noise_keys(seed, step, torch.zeros_like(places))
    spread = ((start + places * _GOLDEN) & 0xFFFFFFFF).double() / 2**32
    return ((rates * spread - 0.5) / (rates - 1)).clamp(0, 1).float()
