"""y and y_hat in levels (`codec.quantization.levels`): the chip's channels, and what the host computes."""

import copy

from torch import Tensor, nn

from codec.network.codec import Codec
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import LevelQuantizer, Levels, beside_levels
from codec.quantization.quantizers import ActivationQuantizer
from codec.quantization.splits import HIGHEST, LOWEST, apart, channels, offset, places, together
from export.graph.rewrite import constant, parameter


def in_levels(codec: Codec, transform: str, values: Tensor) -> Tensor:
    """The levels of y or y_hat as the chip's channels, where the transform works on levels; elsewhere the values."""
    if not codec.has_levels(transform):
        return values
    return _rounded(values, getattr(codec, transform).levels).clamp(LOWEST, HIGHEST)


def _rounded(values: Tensor, levels: Levels) -> Tensor:
    """The levels of y or y_hat as the chip's channels, not clamped."""
    return apart((values / levels.step.view(-1, 1, 1)).round(), levels.splits)


def in_channels_of_chip(codec: Codec, part: str) -> nn.Module:
    """A copy of a transform with the channels that a chip has for levels; the host converts between these and y.

    A transform without levels is returned itself.
    """
    transform: nn.Module = getattr(codec, part)
    if not codec.has_levels(part):
        return transform
    chip = copy.deepcopy(transform)
    splits: Tensor = getattr(codec, part).levels.splits
    layer = chip.get_submodule(beside_levels(part))
    assert isinstance(layer, QuantizedLayer)
    if (splits > 1).any():
        (give_splits if part == "g_a" else take_splits)(layer, splits)
    layer.weight_quantizer.forget_splits()
    chip.set_submodule("levels", nn.Identity())
    for name, quantizer in list(chip.named_modules()):
        if isinstance(quantizer, LevelQuantizer):
            plain = ActivationQuantizer(quantizer.switches, quantizer.observer, (LOWEST, HIGHEST))
            plain.frozen = quantizer.frozen
            chip.set_submodule(name, plain)
    return chip


def give_splits(layer: nn.Module, splits: Tensor) -> None:
    """Gives the last convolution of g_a an output channel for each split, in place.

    Args:
        splits: [M].
    """
    assert isinstance(layer, QuantizedLayer)
    assert isinstance(layer, nn.Conv2d)
    weight, bias, quantizer = parameter(layer, "weight"), parameter(layer, "bias"), layer.weight_quantizer
    channel, place = places(splits)
    count = splits[channel]
    (source,) = layer.wiring.inputs
    scale = quantizer.scale[channel] / count
    unit, own = source.scale * quantizer.scale, source.scale * scale
    shift = (offset(place, count) / own).round()
    layer.register_parameter("weight", constant(quantizer.of_chip(quantizer(weight)) * scale.view(-1, 1, 1, 1)))
    layer.register_parameter("bias", constant(((bias / unit).round()[channel] + shift) * own))
    quantizer.scale = scale
    layer.out_channels = len(channel)


def take_splits(layer: nn.Module, splits: Tensor) -> None:
    """Gives the first layer of h_a or g_s an input channel for each split, with its part of the weights; in place.

    Args:
        splits: [M].
    """
    assert isinstance(layer, QuantizedLayer)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    weight, quantizer = parameter(layer, "weight"), layer.weight_quantizer
    integers = quantizer.of_chip(quantizer(weight))
    if quantizer.splits is None:
        integers = integers.index_select(int(not layer.transposed), channels(splits))
    layer.register_parameter("weight", constant(integers * quantizer.coarse_along(integers)))
    layer.in_channels = int(splits.sum())


def on_host(codec: Codec, part: str) -> list[nn.Module]:
    """What the host computes between y and a transform's levels, if it has levels."""
    return [OnHost(getattr(codec, part).levels)] if codec.has_levels(part) else []


class OnHost(nn.Module):
    """The chip's levels [B, sum of splits, H, W] to y [B, M, H, W], or y to levels, which the graph clamps."""

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.levels(together(x, self.levels.splits)) if self.levels.gives_y else _rounded(x, self.levels)
        return y
