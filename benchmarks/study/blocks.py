"""Blocks that the study measures beside the product's own: a control, and other forms of the gate and of ReLU.

python train_accel.py --plugin benchmarks/study/blocks.py --act gate_local ...
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks import register_activation
from codec.blocks.gate import DECODER_HIGH, ENCODER_HIGH, Gate
from codec.blocks.relu import ReluMlp

GROUPS = 4


class Scale(nn.Module):
    """y = s x, a scale a channel: the linear control. What it loses is what a nonlinearity is worth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Least squares, a channel at a time; x, y [B, C, H, W]."""
        self.scale.copy_(ReluMlp.input_scale(x, y)[:, None, None])


class Shelf(Scale):
    """y = s (relu(x + b) - b) = s max(x, -b): ReLU that cuts at -b, not at 0; s and b a channel.

    Both fold into the convolutions around it: in int8 the cut is the low end of a tensor's range, and costs nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.shelf = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x + self.shelf) - self.shelf)

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Cuts at the standard deviation, far enough that little is lost and near enough that b learns."""
        self.shelf.copy_(x.std((0, 2, 3))[:, None, None])
        super().fit(torch.maximum(x, -self.shelf), y)


class GroupedGate(Gate):
    """The gate with W in four groups of channels: a quarter of its multiplications."""

    def __init__(self, channels: int, high: float) -> None:
        super().__init__(channels, high)
        self.gain = nn.Conv2d(channels, channels, 1, groups=GROUPS)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """The gate's own fit, a group at a time."""
        size = x.shape[1] // GROUPS
        for first in range(0, x.shape[1], size):
            group = slice(first, first + size)
            part = Gate(size, self.high).to(x.device)
            part.fit(x[:, group], y[:, group])
            self.gain.weight[group] = part.gain.weight
            self.gain.bias[group] = part.gain.bias  # type: ignore[index, assignment]


class PiecedGate(Gate):
    """y = x * clamp(W|x| + a + relu(V|x| + b), 0, high): a gain of two pieces a channel, convex as GDN's own is."""

    def __init__(self, channels: int, high: float) -> None:
        super().__init__(channels, high)
        self.bend = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.bend.weight, std=0.01)
        nn.init.constant_(self.bend.bias, 0.1)  # type: ignore[arg-type]
        self.gain.bias.data -= 0.1  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        magnitude = self.magnitude(x)
        y: Tensor = x * (self.gain(magnitude) + F.relu(self.bend(magnitude))).clamp(0, self.high)
        return y

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """The gate's own fit of the one piece; the other begins as the constant that it is without photographs."""
        super().fit(x, y)
        self.gain.bias.sub_(0.1)  # type: ignore[union-attr]


class LocalGate(Gate):
    """y = x * clamp(W D|x| + a, 0, high), D a depthwise 3x3 that begins as the identity: neighbours count too."""

    def __init__(self, channels: int, high: float) -> None:
        super().__init__(channels, high)
        self.neighbours = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        nn.init.dirac_(self.neighbours.weight, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gain(self.neighbours(self.magnitude(x))).clamp(0, self.high)
        return y


def _register(name: str, block: type[nn.Module], *bounds: float) -> None:
    """One class for both forms; `bounds` are the gate's, of the encoder and of the decoder."""

    class Forms:
        @staticmethod
        def encoder(channels: int, options: None) -> nn.Module:
            return block(channels, *bounds[:1])

        @staticmethod
        def decoder(channels: int, options: None) -> nn.Module:
            return block(channels, *bounds[1:])

    register_activation(name)(Forms)


_register("linear", Scale)
_register("shelf", Shelf)
_register("gate_grouped", GroupedGate, ENCODER_HIGH, DECODER_HIGH)
_register("gate_pieces", PiecedGate, ENCODER_HIGH, DECODER_HIGH)
_register("gate_local", LocalGate, ENCODER_HIGH, DECODER_HIGH)
