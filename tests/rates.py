"""Codecs of several rates whose random weights give symbols at every rate, and gains that differ in each channel."""

import torch

from benchmarks.everywhere import lively
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.tables import with_tables

RATES = 4


def rated(arch: str, n: int = 8, m: int = 12, rates: int = RATES) -> Codec:
    """A codec in eval mode, with tables."""
    codec = lively(arch, n, m, widest=8)
    codec.add_rates(rates, octaves=2.0)
    with torch.no_grad():
        for gains in (codec.y_gains, codec.z_gains if isinstance(codec, HyperCodec) else None):
            if gains is not None:
                gains.drops += torch.linspace(-0.5, 0.5, gains.drops.shape[1])
    return with_tables(codec)
