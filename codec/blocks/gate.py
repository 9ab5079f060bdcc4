"""The gate: GDN's shape (a gain for each value, from all channels' magnitudes) without root or division."""

import torch
from torch import Tensor, nn

from codec.blocks.registry import register_activation


class Gate(nn.Module):
    """y = x * clamp(W|x| + a, low, high), W a 1x1 convolution; [B, C, H, W] to the same shape.

    Starts as y = x (W = 0, a = 1). Where the clamp acts, neither W nor a gets a gradient from that value.
    """

    def __init__(self, channels: int, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.gain = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain(torch.abs(x)).clamp(self.low, self.high)


@register_activation("gate")
class GateActivation:
    """A GDN divides, so its gains fall; an IGDN multiplies, so they grow: hence the two upper bounds.

    The bounds are those under which distilled gates matched GDN on photographs.
    """

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return Gate(channels, low=0.02, high=6.0)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return Gate(channels, low=0.02, high=30.0)
