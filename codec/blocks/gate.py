"""The gate: like GDN, a gain for each value from the magnitudes of all channels, but without root or division.

`gate` has only the gain; `gate_mlp` adds a small residual network at each position, which computes more than a gain.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks.registry import register_activation
from codec.blocks.relu import hidden_layer

FIT_POSITIONS = 16384
"""Positions that a closed-form fit uses; more did not change the gates of a zoo-sized codec."""

RIDGE = 1e-6
"""Ridge of the normal equations, relative to the mean of their diagonal: a channel that hardly fires stays solvable."""


class Magnitude(nn.Module):
    """|x| as a leaky ReLU of slope -1: runtimes have an int8 kernel for that and compute Abs in float."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, -1.0)


class Gate(nn.Module):
    """y = x * clamp(W|x| + a, 0, high), W a 1x1 convolution; [B, C, H, W] to the same shape.

    Starts as y = x (W = 0, a = 1). Where the clamp acts, that value gives W and a no gradient. The clamp begins at
    zero, so that in int8 the saturation of the convolution's output replaces it.
    """

    local = True

    def __init__(self, channels: int, high: float) -> None:
        super().__init__()
        self.high = high
        self.magnitude = Magnitude()
        self.gain = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gain(self.magnitude(x)).clamp(0, self.high)
        return y

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Fits the gate to a map x -> y [B, C, H, W]: least squares of y - x (W|x| + a), without the clamp.

        One system of C + 1 equations for each channel, in float64.
        """
        x, y = (each.movedim(1, -1).flatten(0, -2) for each in (x, y))
        x, y = (each[:: max(1, len(each) // FIT_POSITIONS)] for each in (x, y))
        features = torch.cat([x.abs(), torch.ones_like(x[:, :1])], 1)
        weighted = (features * x[:, c, None] for c in range(x.shape[1]))
        normal = torch.stack([each.T @ each for each in weighted]).double()
        moments = ((x * y).T @ features).double()
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += RIDGE * diagonal.mean(1, keepdim=True)
        solution = torch.linalg.solve(normal, moments).float()
        self.gain.weight.copy_(solution[:, :-1, None, None])
        self.gain.bias.copy_(solution[:, -1])  # type: ignore[union-attr]


class GateMlp(Gate):
    """y = x * clamp(W|x| + a, 0, high) + V relu(U x + u), with 2 C hidden channels; [B, C, H, W] to the same shape.

    V begins at zero, so the block starts as its gate, and `fit` fits only the gate.
    """

    def __init__(self, channels: int, high: float) -> None:
        super().__init__(channels, high)
        self.inner, self.outer = hidden_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) + self.outer(F.relu(self.inner(x)))
        return y


ENCODER_HIGH, DECODER_HIGH = 6.0, 30.0
"""Upper bounds of the clamp. GDN divides, so its gains are small; IGDN multiplies, so its gains are large.

With these bounds, distilled gates matched GDN on photographs.
"""


@register_activation("gate")
class GateActivation:
    """A gain like GDN's without the division, at the same cost."""

    block: type[Gate] = Gate

    @classmethod
    def encoder(cls, channels: int, options: None) -> nn.Module:
        return cls.block(channels, ENCODER_HIGH)

    @classmethod
    def decoder(cls, channels: int, options: None) -> nn.Module:
        return cls.block(channels, DECODER_HIGH)


@register_activation("gate_mlp")
class GateMlpActivation(GateActivation):
    """Better than GDN, with five times the multiplications of a gate."""

    block = GateMlp
