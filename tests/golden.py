"""A codec whose decoder computes without rounding, so that a file decodes to the same picture on every machine.

Nothing of it is drawn or trained: it averages 16x16 pixels to a symbol a colour, its weights are powers of two and its
tables integers.
"""

import torch

from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec
from codec.network.codec import Codec

COLOURS = 3
REACH = 29
"""Symbols -29..29 have an interval of their own; black and white are -32 and 32."""


def golden_codec() -> Codec:
    """N=3, M=3, ReLU everywhere, in eval mode, with tables."""
    codec = (
        new_codec(Architecture(COLOURS, COLOURS, BlockChoice("relu"), BlockChoice("relu"))).eval().requires_grad_(False)
    )
    for transform, tap in ((codec.g_a, 1 / 4), (codec.g_s, 1)):
        for layer in transform[::2]:  # a mean of 2x2 pixels each; a pixel repeated 2x2 times each
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[range(COLOURS), range(COLOURS), 2:4, 2:4] = tap
    codec.g_a[6].weight *= 64
    codec.g_a[6].bias -= 32
    codec.g_s[0].bias += 32
    codec.g_s[6].weight /= 64
    codec.entropy_bottleneck.quantiles[:, 0] = torch.tensor([-REACH, 0.0, REACH])
    # A hill over the symbols, steeper for each colour, and one count for all that is outside.
    symbols = torch.arange(-REACH, REACH + 1)
    cdfs = torch.zeros(COLOURS, len(symbols) + 2, dtype=torch.int32)
    for colour in range(COLOURS):
        hill = (REACH + 1 - symbols.abs()) ** (colour + 1)
        counts = 1 + hill * 60_000 // hill.sum()
        counts[REACH] += 65_535 - counts.sum()
        cdfs[colour, 1:-1] = counts.cumsum(0)
        cdfs[colour, -1] = 65_536
    tables = {"_quantized_cdf": cdfs, "_offset": symbols[:1].repeat(COLOURS).int()}
    tables["_cdf_length"] = torch.full((COLOURS,), cdfs.shape[1], dtype=torch.int32)
    codec.load_weights(codec.state_dict() | {f"entropy_bottleneck.{name}": table for name, table in tables.items()})
    return codec
