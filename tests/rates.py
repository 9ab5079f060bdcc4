"""Codecs of several rates whose random weights give symbols at every rate, and gains that differ in each channel."""

from benchmarks.everywhere import RATES, SEVERAL, made
from codec.network.codec import Codec

__all__ = ["RATES", "rated"]


def rated(arch: str) -> Codec:
    """A codec in eval mode, with tables."""
    return made(arch + SEVERAL, 8, 12)
