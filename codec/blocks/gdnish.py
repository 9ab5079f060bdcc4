"""GDNishLite: convolutions, ReLU6 and a gain per channel instead of GDN.

Operators that an NPU has are modules here (ReLU6, Sigmoid, Conv2d), so that quantization finds them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks.registry import register_activation
from codec.errors import InputError

DEPTHWISE_START = 0.1
"""First centre tap of the depthwise kernel with a residual: small for small first steps, but large enough to learn."""


@dataclass(frozen=True)
class GDNishOptions:
    """Options of the block. Raises InputError for values that cannot work."""

    enc_t: float = field(default=2.0, metadata={"help": "encoder: hidden channels per channel"})
    enc_kdw: int = field(default=3, metadata={"help": "encoder: size of the depthwise kernel, odd"})
    enc_eca: bool = field(default=True, metadata={"help": "encoder: channel attention (ECA) on the branch"})
    enc_residual: bool = field(default=True, metadata={"help": "encoder: add the branch to x"})
    dec_k: int = field(default=3, metadata={"help": "decoder: size of the last kernel, odd"})
    dec_gmin: float = field(default=0.5, metadata={"help": "decoder: least gain"})
    dec_gmax: float = field(default=2.0, metadata={"help": "decoder: greatest gain"})
    dec_residual: bool = field(default=True, metadata={"help": "decoder: add the branch to x"})

    def __post_init__(self) -> None:
        if not 0 < self.enc_t < float("inf"):
            raise InputError(f"--enc_t {self.enc_t}: the expansion must be above 0")
        if self.enc_t < 1 and not self.enc_residual:
            raise InputError(
                f"--enc_t {self.enc_t} with --enc_residual false would drop channels: "
                "use an expansion of at least 1, or --enc_residual true"
            )
        for name, size in (("enc_kdw", self.enc_kdw), ("dec_k", self.dec_k)):
            if size < 1 or size % 2 == 0:
                raise InputError(f"--{name} {size}: a kernel size must be odd and at least 1, like 3")
        if not 0 <= self.dec_gmin < self.dec_gmax:
            raise InputError(
                f"--dec_gmin {self.dec_gmin} --dec_gmax {self.dec_gmax}: "
                "the least gain must be at least 0 and below the greatest"
            )


class ChannelConv(nn.Conv1d):
    """A 3-tap convolution across channels, zero padded, without bias: [B, C, 1, 1] to the same shape.

    Computed as an equal 1x1 convolution, which chips support: its C x C matrix is banded and holds the three taps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, 1, 3, padding=1, bias=False)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, banded(self.weight.flatten(), self.channels))


def banded(taps: Tensor, channels: int) -> Tensor:
    """The 1x1 kernel [C, C, 1, 1] of a zero-padded 3-tap convolution across C channels."""
    diagonals = [torch.diag_embed(taps[1 + i].expand(channels - abs(i)), i) for i in (-1, 0, 1)]
    return torch.stack(diagonals).sum(0)[:, :, None, None]


class ECA(nn.Module):
    """y = x * sigmoid(conv3(mean of x over H, W)): a gain per picture and channel.

    [B, C, H, W] to the same shape. Starts with every gain at 1/2. Source: Wang et al., ECA-Net, arXiv 1910.03151.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = ChannelConv(channels)
        self.sigmoid = nn.Sigmoid()
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.sigmoid(self.conv(self.pool(x)))
        return y


class GDNishEncoder(nn.Module):
    """y = x + ECA(pw2(relu6(dw(relu6(pw1(x)))))), [B, C, H, W] to the same shape.

    pw1 is 1x1, C -> t*C; dw is depthwise, k x k; pw2 is 1x1, t*C -> C.

    With the residual it starts as y = x exactly: pw1 = [I; -I] and pw2 = 0. Without, it starts as
    y = clamp(x, -6, 6): relu6(x) - relu6(-x), or 2 relu6(x/2 + 3) - 6 for the channels whose negative part
    has no room (t < 2). Hidden channels beyond 2*C, and all of them for t < 1, are random mixtures.
    """

    def __init__(self, channels: int, t: float, kernel: int, eca: bool, residual: bool) -> None:
        super().__init__()
        hidden = max(1, round(t * channels))
        self.residual = residual
        self.pw1 = nn.Conv2d(channels, hidden, 1)
        self.dw = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.pw2 = nn.Conv2d(hidden, channels, 1)
        self.act1, self.act2 = nn.ReLU6(), nn.ReLU6()
        self.eca = ECA(channels) if eca else nn.Identity()
        self.local = not eca  # ECA takes the mean of the full picture
        self._start(channels, hidden)

    @torch.no_grad()
    def _start(self, channels: int, hidden: int) -> None:
        for conv in (self.pw1, self.dw, self.pw2):
            conv.bias.zero_()  # type: ignore[union-attr]
        self.dw.weight.zero_()
        self.pw2.weight.zero_()
        centre = self.dw.kernel_size[0] // 2
        self.dw.weight[:, :, centre, centre] = DEPTHWISE_START if self.residual else 1.0

        pw1, pw2 = self.pw1.weight[:, :, 0, 0], self.pw2.weight[:, :, 0, 0]
        nn.init.orthogonal_(pw1)
        if hidden < channels:
            return
        unit = torch.eye(channels)
        paired = min(channels, hidden - channels)
        pw1[:channels] = unit
        pw1[channels : channels + paired] = -unit[:paired]
        if self.residual:
            return
        pw1[paired:channels] /= 2
        self.pw1.bias[paired:channels] = 3  # type: ignore[index]
        undo_eca = 2.0 if isinstance(self.eca, ECA) else 1.0
        pw2[:, :channels] = undo_eca * unit
        pw2[:, channels : channels + paired] = -undo_eca * unit[:, :paired]
        pw2[:, paired:channels] *= 2
        self.pw2.bias[paired:] = -6 * undo_eca  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        branch = self.eca(self.pw2(self.act2(self.dw(self.act1(self.pw1(x))))))
        y: Tensor = x + branch if self.residual else branch
        return y


class GDNishDecoder(nn.Module):
    """y = x + conv(z * g), z = relu6(mix(x)), g = gmin + (gmax - gmin) * hardsigmoid(v), v a depthwise 1x1 of z.

    [B, C, H, W] to the same shape. mix is 1x1, conv is k x k. hardsigmoid(v) is torch's clamp(v/6 + 1/2, 0, 1); the
    affine maps before the clamp are part of the depthwise convolution, g = gmin + clamp(gate(z), 0, gmax - gmin), so
    that in int8 a convolution's own saturation is all of it.

    With the residual it starts as y = x exactly: mix = I and conv = 0. Without, it starts as
    y = clamp(x, -6, 6): z = relu6(x/2 + 3) keeps the negatives that relu6(x) would lose. The gain starts
    half-way between gmin and gmax.
    """

    local = True

    def __init__(self, channels: int, kernel: int, gmin: float, gmax: float, residual: bool) -> None:
        super().__init__()
        self.gmin, self.gmax, self.residual = gmin, gmax, residual
        self.mix = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1, groups=channels)
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.act = nn.ReLU6()
        self._start(channels)

    @torch.no_grad()
    def _start(self, channels: int) -> None:
        for parameter in self.parameters():
            parameter.zero_()
        unit = torch.eye(channels)
        self.gate.bias.fill_((self.gmax - self.gmin) / 2)  # type: ignore[union-attr]
        self.mix.weight[:, :, 0, 0] = unit
        if self.residual:
            return
        self.mix.weight /= 2
        self.mix.bias.fill_(3)  # type: ignore[union-attr]
        centre = self.conv.kernel_size[0] // 2
        self.conv.weight[:, :, centre, centre] = unit * 2 / ((self.gmin + self.gmax) / 2)
        self.conv.bias.fill_(-6)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.mix(x))
        gain = self.gate(z).clamp(0, self.gmax - self.gmin) + self.gmin
        branch = self.conv(z * gain)
        y: Tensor = x + branch if self.residual else branch
        return y


@register_activation("gdnish", prefix="")
class GDNishLite:
    """The block. Its options begin with `enc_` and `dec_`, so they have no other prefix."""

    Options = GDNishOptions

    @staticmethod
    def encoder(channels: int, options: GDNishOptions) -> nn.Module:
        return GDNishEncoder(channels, options.enc_t, options.enc_kdw, options.enc_eca, options.enc_residual)

    @staticmethod
    def decoder(channels: int, options: GDNishOptions) -> nn.Module:
        return GDNishDecoder(channels, options.dec_k, options.dec_gmin, options.dec_gmax, options.dec_residual)
