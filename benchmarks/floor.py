"""What no training step can beat: the codec's convolutions alone, in bf16 and channels_last, compiled.

In the form that torch knows; `benchmarks.forms` says whether another is faster.
"""

import torch
from torch import Tensor, nn

from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import Architecture
from codec.network.architectures import new_codec
from training.deconvolution import set_biases_apart


class Convolutions(nn.Module):
    """Encoder and decoder with nothing between their convolutions."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        codec = new_codec(Architecture(*zoo_widths(quality)))
        layers = [*codec.g_a, *codec.g_s]
        self.layers = nn.Sequential(*(layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to as many."""
        x_hat: Tensor = self.layers(x)
        return x_hat


class Floor:
    """Forward and backward of `Convolutions`, without a loss or an optimizer."""

    def __init__(self, quality: int, batch_size: int, device: torch.device) -> None:
        self.device = device
        self.model = Convolutions(quality).to(device).to(memory_format=torch.channels_last)
        if device.type == "cpu":
            set_biases_apart(self.model)
        self.model.compile(fullgraph=True)
        self.x = torch.rand(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)

    def step(self) -> None:
        """One forward and backward."""
        self.model.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            x_hat = self.model(self.x)
        x_hat.backward(torch.ones_like(x_hat))
