"""ReLU: the cheapest activation on every NPU, with no parameters of its own."""

from torch import nn

from codec.blocks.registry import register_activation


@register_activation("relu")
class ReLU:
    """y = max(x, 0) for encoder and decoder alike, not in place: hooks and observers may still need x."""

    @staticmethod
    def encoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)

    @staticmethod
    def decoder(channels: int, options: None) -> nn.Module:
        return nn.ReLU(inplace=False)
