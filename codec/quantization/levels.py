"""Levels of y: how y leaves the chip, and how y_hat reaches it, in 8 bits where the host makes the symbols.

A codec of one rate without means sends round(y), which fits 8 bits. With means it sends round(y - mean), and with
several rates round(gain * y): the host alone knows mean and gain, and the chip must give y itself, finer than in
whole numbers. Here y = level * step, with levels in -128..127 and a step for each channel, so that a channel with
large values uses all levels. The weights before and after hold the steps: the chip computes with levels, and a step
costs nothing there. The host multiplies and divides.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from codec.network.codec import Codec
from codec.quantization.layers import QuantizedLayer

RANGE = (-128.0, 127.0)
"""Gives levels the scale 1 and the zero point 128."""

BEYOND = 1.25
"""How far beyond the largest magnitude that the pictures have shown levels reach."""

FINEST, FEWEST = 1 / 16, 32
"""Least step, about, of a channel whose largest magnitude has at least so many levels then. A finer one makes y hardly
better, which is rounded to 1, but the weights of its channel smaller: int8 then rounds them relatively more, since they
share their scales with the weights of all channels."""

GOLDEN = (math.sqrt(5) - 1) / 2


class Levels(nn.Module):
    """Between y and its levels [B, M, H, W], in a transform whose neighbouring layer holds the steps in its weights.

    Attributes:
        step: buffer [M].
        gives_y: levels to y; else y to levels.
    """

    step: Tensor

    def __init__(self, channels: int, gives_y: bool) -> None:
        super().__init__()
        self.gives_y = gives_y
        self.register_buffer("step", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        step = self.step.view(-1, 1, 1)
        return x * step if self.gives_y else x / step


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


def levels_of(codec: Codec) -> Iterator[tuple[str, Levels]]:
    """The levels of the quantized transforms, with the names of these."""
    for part in ("g_a", "h_a", "g_s"):
        levels = getattr(getattr(codec, part, None), "levels", None)
        if isinstance(levels, Levels):
            yield part, levels


@torch.no_grad()
def fit_levels(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Chooses the steps from y of pictures, in place; the float codec stays the same.

    y_hat differs from y by half a symbol at most, and shares the steps.

    Args:
        codec: in eval mode, computing in float.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    if any(levels_of(codec)):
        largest = torch.stack([codec.g_a(x).abs().amax((0, 2, 3)) for x in pictures]).amax(0)
        finest = (largest / FEWEST).clamp(max=FINEST) * _spread(codec.M).to(largest)
        set_steps(codec, torch.maximum((BEYOND * largest + 0.5) / RANGE[1], finest))


def _spread(channels: int) -> Tensor:
    """Factors [M] from 0.75 to 1.25, no two alike.

    A level passes to another symbol at certain rates. With equal steps these would be the same for all channels, and
    the size of a file would jump there.
    """
    return 0.75 + 0.5 * (torch.arange(channels) * GOLDEN % 1)


@torch.no_grad()
def set_steps(codec: Codec, step: Tensor) -> None:
    """Sets the steps [M], in place, and scales the layers beside them, so that the float codec stays the same."""
    for part, levels in levels_of(codec):
        layer = getattr(codec, part).get_submodule("6" if part == "g_a" else "0")
        ratio = step.to(levels.step) / levels.step
        assert isinstance(layer, QuantizedLayer)
        if part == "g_a":
            layer.output_factor.div_(ratio)
        else:
            layer.input_factor.mul_(ratio)
        levels.step.copy_(step)
