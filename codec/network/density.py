"""The learned density of a latent as integers, from which the CDF tables of every rate follow."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from codec.bitstream.density import DENSITY_BITS, MOST_SHIFT, SAMPLES, Density
from codec.bitstream.gains import GAIN_BITS
from codec.errors import InputError
from codec.network.bottleneck import Bottleneck


class SampledDensity(nn.Module):
    """`codec.bitstream.density.Density` as buffers: part of the tables, zeros while the weights train.

    Attributes:
        first, shift: int32 [C].
        values: int32 [C, SAMPLES + 1].
    """

    first: Tensor
    shift: Tensor
    values: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, shape in (("first", (channels,)), ("shift", (channels,)), ("values", (channels, SAMPLES + 1))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))

    def refresh(self, bottleneck: Bottleneck) -> None:
        """Samples the densities of a bottleneck that has its tables."""
        for name, array in vars(sampled(bottleneck)).items():
            getattr(self, name).copy_(torch.from_numpy(array))


@torch.no_grad()
def sampled(bottleneck: Bottleneck) -> Density:
    """The cumulative densities as far as the quantiles reach, at points that are a power of two apart.

    Raises:
        InputError: a density is too wide.
    """
    host = copy.deepcopy(bottleneck).cpu().double()
    low, median, high = host.quantiles[:, 0].unbind(1)
    unit = 2.0**-GAIN_BITS
    shift = torch.ceil(torch.log2((high - low) / ((SAMPLES - 2) * unit))).clamp_min(0)
    if not (shift <= MOST_SHIFT).all():
        raise InputError("the densities of the entropy model are too wide; its training has diverged")
    spacing = unit * torch.exp2(shift)
    first = torch.floor((low - median) / spacing).clamp(-SAMPLES, 0)
    points = median[:, None] + (first[:, None] + torch.arange(SAMPLES + 1)) * spacing[:, None]
    logits = host._logits_cumulative(points[:, None], stop_gradient=True)[:, 0]
    values = torch.round(2.0**DENSITY_BITS * torch.sigmoid(logits))
    values[:, 0], values[:, -1] = 0, 2.0**DENSITY_BITS
    as_words = (each.to(torch.int32).numpy() for each in (first, shift, values.cummax(1).values))
    return Density(*(np.ascontiguousarray(array) for array in as_words))
