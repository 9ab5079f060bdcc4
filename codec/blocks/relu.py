"""ReLU: the cheapest activation on every NPU, alone or in a small residual network.

`relu` has no parameters of its own. `relu_mlp` can follow a GDN's map, with convolutions, ReLU and a sum alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks.registry import register_activation

HIDDEN = 2
"""Width of the hidden layer of a residual network, in channels of its block."""


def hidden_layer(channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """U and V of x -> V relu(U x + u), 1x1 convolutions over HIDDEN * channels; V begins at zero."""
    inner = nn.Conv2d(channels, HIDDEN * channels, 1)
    outer = nn.Conv2d(HIDDEN * channels, channels, 1, bias=False)
    nn.init.zeros_(outer.weight)
    return inner, outer


class ReluMlp(nn.Module):
    """y = x + V relu(U x + u), with 2 C hidden channels; [B, C, H, W] to the same shape. Starts as y = x."""

    local = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.outer = hidden_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.outer(F.relu(self.inner(x)))
        return y

    @staticmethod
    def input_scale(x: Tensor, y: Tensor) -> Tensor:
        """Least squares of y - s x, a channel at a time [C]: what the hidden layer then need not spend itself on.

        The convolution before takes s in, so that no operation is left of it.
        """
        return (x * y).sum((0, 2, 3)) / x.square().sum((0, 2, 3)).clamp(min=torch.finfo(x.dtype).tiny)


@register_activation("relu")
class ReLU:
    """y = max(x, 0) for encoder and decoder alike, not in place: hooks and observers may still need x."""

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)


@register_activation("relu_mlp")
class ReluMlpActivation:
    """Level with GDN without any product of activations, for four times a gate's multiplications."""

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return ReluMlp(channels)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return ReluMlp(channels)
