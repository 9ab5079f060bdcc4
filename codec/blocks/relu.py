"""ReLU, the cheapest activation on every NPU, and a small residual network with it.

`relu` has no parameters. `relu_mlp` can approximate a GDN with only convolutions, ReLU and a sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks.registry import register_activation

HIDDEN = 2
"""Width of the hidden layer of a residual network, as a multiple of the block's channels."""


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
        """The scale s [C] that minimizes |y - s x|^2 for each channel; the hidden layer then learns only the rest.

        The convolution before the block absorbs s, so it costs no operation.
        """
        return (x * y).sum((0, 2, 3)) / x.square().sum((0, 2, 3)).clamp(min=torch.finfo(x.dtype).tiny)


@register_activation("relu")
class ReLU:
    """y = max(x, 0) in encoder and decoder; not in place, because hooks and observers may still need x."""

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)


@register_activation("relu_mlp")
class ReluMlpActivation:
    """As good as GDN without products of activations, with four times the multiplications of a gate."""

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return ReluMlp(channels)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return ReluMlp(channels)
