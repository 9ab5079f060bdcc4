"""Levels of y: how y leaves the chip, and how y_hat reaches it, in 8 bits where the host makes the symbols.

A codec of one rate without means sends round(y), which fits 8 bits. With means it sends round(y - mean), and with
several rates round(gain * y): the host alone knows mean and gain, and the chip must give y itself, finer than in
whole numbers. Here y = level * step, with levels in -128..127 and a step for each channel, so that a channel with
large values uses all levels. The weights before and after hold the steps: the chip computes with levels, and a step
costs nothing there. The host multiplies and divides.

A channel whose values are so large that 8 bits would be too coarse is split: several channels of the chip hold it, and
its level is their sum, in 8 bits each. The outputs round the same value, each shifted by another part of a step, so
that their sum is the value rounded to a fraction of a step. This is outlier channel splitting (Zhao et al. 2019,
arXiv:1901.09504) with the step of the sum made finer. In g_a and g_s the split in the middle has integer weights of its
own, so that the sum of the weights is finer too. With weights that are alike, the channels with the largest values
would have the worst weights.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from codec.description.architecture import MOST_SPLITS
from codec.network.codec import Codec
from codec.quantization.layers import QuantizedLayer
from codec.quantization.observers import Observer
from codec.quantization.quantizers import ActivationQuantizer, Switches, round_ste
from codec.quantization.splits import HIGHEST, LOWEST, middle, offset

BEYOND = 2.0
"""How far beyond the largest magnitude that the pictures have shown levels reach: a clamped level costs more than many
that are rounded a little coarser (`docs/qat.md`)."""

FINEST, FEWEST = 1 / 16, 32
"""Least step, about, of a channel whose largest magnitude has at least so many levels then. A finer one makes y hardly
better, which is rounded to 1, but the weights of its channel smaller: int8 then rounds them relatively more, since they
share their scales with the weights of all channels."""

COARSEST = 1 / 4
"""A channel with a larger step is split in two, four or eight."""

GOLDEN = (math.sqrt(5) - 1) / 2


class Levels(nn.Module):
    """Between y and its levels [B, M, H, W], in a transform whose neighbouring layer holds the steps in its weights.

    Attributes:
        step: buffer [M].
        splits: buffer [M], int32: how many channels of the chip hold each channel; a power of two.
        gives_y: levels to y; else y to levels.
        clamped: buffer [2], int64, not saved: how many levels 8 bits did not hold in evaluation, and how many there
            were.
    """

    ONES_IN_EARLIER_CHECKPOINTS = ("splits",)
    step: Tensor
    splits: Tensor
    clamped: Tensor

    def __init__(self, channels: int, gives_y: bool) -> None:
        super().__init__()
        self.gives_y = gives_y
        self.register_buffer("step", torch.ones(channels))
        self.register_buffer("splits", torch.ones(channels, dtype=torch.int32))
        self.register_buffer("clamped", torch.zeros(2, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        step = self.step.view(-1, 1, 1)
        return x * step if self.gives_y else x / step


class LevelQuantizer(ActivationQuantizer):
    """Rounds to levels in evaluation; a channel in n splits has the sums of n levels.

    Args:
        levels: the transform's, which is registered elsewhere.
    """

    def __init__(self, switches: Switches, observer: Observer, levels: Levels) -> None:
        super().__init__(switches, observer, (LOWEST, HIGHEST), only_in_eval=True)
        self._levels = (levels,)

    @property
    def splits(self) -> Tensor:
        """How many channels of the chip hold each channel, [M, 1, 1]."""
        return self._levels[0].splits.view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        level = round_ste(x)
        limited = level.clamp(LOWEST * self.splits, HIGHEST * self.splits)
        clamped = self._levels[0].clamped
        clamped[0] += (limited != level).sum()
        clamped[1] += level.numel()
        return limited

    def of_sums(self, accumulator: Tensor, unit: Tensor) -> Tensor:
        """See `ActivationQuantizer.of_sums`; `forward` gets the result, and counts how many levels there are.

        The sums are of every split, [B, M, H, W], and if there are twice as many channels, then what the split in the
        middle has more.
        """
        splits = self.splits
        own, more = unit / splits, None
        if accumulator.shape[1] == 2 * len(splits):
            accumulator, more = accumulator.chunk(2, 1)
        level, beyond = torch.zeros_like(accumulator), torch.zeros_like(accumulator, dtype=torch.bool)
        for place in range(MOST_SPLITS):
            sums = accumulator if more is None else accumulator + more * (middle(splits) == place)
            shifted = ((sums + (offset(place, splits) / own).round()) * own).round_()
            limited = shifted.clamp(LOWEST, HIGHEST)
            beyond |= (place < splits) & (limited != shifted)
            level += torch.where(place < splits, limited, 0)
        self._levels[0].clamped[0] += beyond.sum()
        return level


def with_levels(codec: Codec, part: str) -> nn.Module:
    """The transform; where y is in levels, it ends, or begins, with `Levels`. Their names do not move the others."""
    transform: nn.Module = getattr(codec, part)
    if not codec.y_model.in_levels:
        return transform
    levels, layers = Levels(codec.M, part == "g_a"), list(transform.named_children())
    levels.to(next(transform.parameters()).device)
    sequence = nn.Sequential()
    for name, layer in [*layers, ("levels", levels)] if part == "g_a" else [("levels", levels), *layers]:
        sequence.add_module(name, layer)
    return sequence.train(transform.training)


def refine_weights(codec: Codec) -> None:
    """Gives the last layer of g_a and the first one of g_s a finer grid for the channels that are split, in place.

    h_a has weights that are alike: its splits come from g_a, and only their sum is what evaluation computes with.
    """
    for part, levels in levels_of(codec):
        quantizer = _beside(codec, part).weight_quantizer
        if part != "h_a" and quantizer.axis is not None:
            quantizer.follow_splits(levels, quantizer.axis if levels.gives_y else 1 - quantizer.axis)


def levels_of(codec: Codec) -> Iterator[tuple[str, Levels]]:
    """The levels of the quantized transforms, with the names of these."""
    for part in ("g_a", "h_a", "g_s"):
        levels = getattr(getattr(codec, part, None), "levels", None)
        if isinstance(levels, Levels):
            yield part, levels


@torch.no_grad()
def fit_levels(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Chooses the steps and the splits from y of pictures, in place; the float codec stays the same.

    y_hat differs from y by half a symbol at most, and shares both. No channel is split beside tensors of 16 bits, or
    if all weights of a layer have one scale: the splits' weights would be rounded otherwise.

    Args:
        codec: in eval mode, computing in float.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    if any(levels_of(codec)):
        largest = torch.stack([codec.g_a(x).abs().amax((0, 2, 3)) for x in pictures]).amax(0)
        finest = (largest / FEWEST).clamp(max=FINEST) * _spread(codec.M).to(largest)
        step = torch.maximum((BEYOND * largest + 0.5) / HIGHEST, finest)
        splits = torch.exp2((step / COARSEST).log2().ceil()).clamp(1, MOST_SPLITS).to(torch.int32)
        if not all(_can_be_split(layer) for _, layer in _neighbours(codec)):
            splits = torch.ones_like(splits)
        set_steps(codec, step / splits, splits)


def _spread(channels: int) -> Tensor:
    """Factors [M] from 0.75 to 1.25, no two alike.

    A level passes to another symbol at certain rates. With equal steps these would be the same for all channels, and
    the size of a file would jump there.
    """
    return 0.75 + 0.5 * (torch.arange(channels) * GOLDEN % 1)


@torch.no_grad()
def set_steps(codec: Codec, step: Tensor, splits: Tensor) -> None:
    """Sets steps and splits [M], in place, and scales the layers beside; the float codec stays the same."""
    for levels, layer in _neighbours(codec):
        ratio = step.to(levels.step) / levels.step
        if levels.gives_y:
            layer.output_factor.div_(ratio)
        else:
            layer.input_factor.mul_(ratio)
        levels.step.copy_(step)
        levels.splits.copy_(splits)


def _neighbours(codec: Codec) -> Iterator[tuple[Levels, QuantizedLayer]]:
    """The levels of the quantized transforms, with the layers that hold their steps."""
    return ((levels, _beside(codec, part)) for part, levels in levels_of(codec))


def _beside(codec: Codec, part: str) -> QuantizedLayer:
    layer = getattr(codec, part).get_submodule(beside_levels(part))
    assert isinstance(layer, QuantizedLayer)
    return layer


def _can_be_split(layer: QuantizedLayer) -> bool:
    return layer.weight_quantizer.axis is not None and not layer.is_beside_16_bits


def beside_levels(part: str) -> str:
    """The name of the layer of a transform that gives levels, or takes them."""
    return "6" if part == "g_a" else "0"
