"""Codecs of several rates whose random weights give symbols at every rate, and gains that differ in each channel."""

from benchmarks import everywhere
from codec.network.codec import Codec

RATES = 4


def rated(arch: str, n: int = 8, m: int = 12, rates: int = RATES) -> Codec:
    """A codec in eval mode, with tables."""
    return everywhere.rated(arch, n, m, rates)
