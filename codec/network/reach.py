"""The receptive field of a transform, in positions of y: tiles must overlap by this."""

import math
from dataclasses import replace

import torch
from torch import fx, nn

from codec.bitstream.integer import UPSAMPLING
from codec.compressai import GDN
from codec.description.architecture import STRIDE
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.tiles import Margins

_Interval = tuple[int, int]

_POINTWISE = nn.Identity | nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.PReLU | nn.GELU | nn.SiLU | nn.Hardswish | nn.Sigmoid
"""Elementwise layers."""


def margins(codec: Codec, part: str) -> Margins | None:
    """The receptive field of a transform: how many positions of y before and after its own a position depends on.

    In an encoder, a position of y depends on the pixels of these positions; in a decoder, the 16x16 pixels of a
    position depend on these positions of y. For h_a the positions are those of z, and each has 4x4 of y.

    Args:
        part: "g_a", "g_s" or "h_a".

    Returns:
        None if a layer looks at the full picture, or if its receptive field is not known.
    """
    transform = getattr(codec, part)
    if isinstance(transform, fx.GraphModule):  # quantized: its quantizers are elementwise
        with torch.random.fork_rng(devices=[]):  # building draws unused initial weights; keep the random state
            transform = getattr(new_codec(replace(codec.architecture, quantization=None)), part)
    if not isinstance(transform, nn.Sequential):
        return None
    interval: _Interval | None = (0, STRIDE - 1) if part == "g_s" else (0, 0)
    for layer in reversed(transform):
        interval = interval and seen_by(layer, interval)
    if interval is None:
        return None
    first, last = interval
    if part == "g_s":
        return -first, last
    stride = STRIDE if part == "g_a" else UPSAMPLING
    return math.ceil(-first / stride), math.ceil((last - stride + 1) / stride)


def seen_by(layer: nn.Module, outputs: _Interval) -> _Interval | None:
    """The interval of inputs, in rows and in columns, that an interval of outputs depends on.

    None if it is not known, or is the full picture. With `local = True` a block says that its receptive field is that
    of its convolutions, one after the other.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return _seen_by_convolution(layer, outputs)
    if isinstance(layer, GDN | _POINTWISE):
        return outputs
    if getattr(layer, "local", False) is not True:
        return None
    interval: _Interval | None = outputs
    for inner in layer.modules():
        if isinstance(inner, nn.Conv2d) and inner.stride == (1, 1):
            interval = interval and seen_by(inner, interval)
        elif isinstance(inner, nn.Conv2d | nn.ConvTranspose2d):
            return None
    return interval


def _seen_by_convolution(layer: nn.Conv2d | nn.ConvTranspose2d, outputs: _Interval) -> _Interval | None:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    (first, last), seen = outputs, []
    for stride, padding, dilation, size in zip(
        layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
    ):
        span = dilation * (size - 1)
        if isinstance(layer, nn.Conv2d):
            seen.append((first * stride - padding, last * stride - padding + span))
        else:
            seen.append((math.ceil((first + padding - span) / stride), math.floor((last + padding) / stride)))
    return min(a for a, _ in seen), max(b for _, b in seen)
