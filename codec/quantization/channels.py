"""The channels of a convolution, scaled in its weights."""

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


@torch.no_grad()
def scale_output(layer: nn.Module, scale: Tensor) -> None:
    """Makes a convolution of one group, or depthwise, give scale [C] times what it gave, in place."""
    assert isinstance(layer, Convolution)
    bias = layer._parameters["bias"]
    _multiply(layer, scale, 1 if layer.transposed and layer.groups == 1 else 0)
    if bias is not None:
        bias.mul_(scale)


@torch.no_grad()
def scale_input(layer: nn.Module, scale: Tensor) -> None:
    """Makes a convolution of one group, or depthwise, take its input as if it were scale [C] times what it is."""
    assert isinstance(layer, Convolution)
    _multiply(layer, scale, 0 if layer.transposed or layer.groups > 1 else 1)


def _multiply(layer: nn.Module, scale: Tensor, axis: int) -> None:
    weight = layer._parameters["weight"]  # the parameter itself, where `weight` is the fake-quantized one
    assert weight is not None
    weight.transpose(0, axis).mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
