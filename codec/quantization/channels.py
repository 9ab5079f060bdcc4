"""Scales the channels of a convolution through its weights."""

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


@torch.no_grad()
def scale_output(layer: nn.Module, scale: Tensor) -> None:
    """Multiplies the output of a convolution by scale [C], in place; it has one group or is depthwise."""
    assert isinstance(layer, Convolution)
    bias = layer._parameters["bias"]
    _scale_weight(layer, scale, 1 if layer.transposed and layer.groups == 1 else 0)
    if bias is not None:
        bias.mul_(scale)


@torch.no_grad()
def scale_input(layer: nn.Module, scale: Tensor) -> None:
    """Makes a convolution multiply its input by scale [C], in place; it has one group or is depthwise."""
    assert isinstance(layer, Convolution)
    _scale_weight(layer, scale, 0 if layer.transposed or layer.groups > 1 else 1)


def _scale_weight(layer: nn.Module, scale: Tensor, axis: int) -> None:
    """Multiplies the weight by a factor for each index of an axis."""
    weight = layer._parameters["weight"]  # the parameter itself; `weight` may be its fake-quantized value
    assert weight is not None
    weight.transpose(0, axis).mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
