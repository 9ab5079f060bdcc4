"""The parts of a codec that are exported, as torch modules."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from codec.description.architecture import STRIDE
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.latent import LatentModel
from codec.quantization.layers import QuantizedLayer
from export.graph.levels import in_channels_of_chip, in_levels, on_host
from export.graph.rewrite import Deconv, constant, parameter, rewrite
from export.runtime import SYMBOL_ZERO
from export.runtime.session import FIFTHS

Part = Literal["full", "encoder", "h_a", "decoder"]


@dataclass(frozen=True)
class Exportable:
    """A part in eval mode with its exact rewrites.

    Attributes:
        module: maps one tensor to one or several; all are float32. The values of a tensor with the name `symbols` are
            the integers -128..127, and those of `levels` too (`codec.quantization.levels`); those of `fifths` are
            fifths of these integers. Those of `magnitudes` are the magnitudes of y, or of its symbols, and those of
            `magnitude_levels` these in levels.
        example: an input with the shape that the graph will have.
        inputs, outputs: names of its tensors.
    """

    module: nn.Module
    example: Tensor
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def exportable(codec: Codec, part: Part, deconv: Deconv, x: Tensor, dynamic: bool = False) -> Exportable:
    """A part of a codec, ready to be traced.

    encoder: x to y, or to its symbols or levels. h_a: magnitudes, or with means y or its levels, to z less its
    medians, or to the symbols of z, or fifths of them. decoder: y_hat, or its symbols or levels, to x_hat. full: x
    to x_hat and y_hat or symbols; only for checks, since rounding belongs on the host. With means it holds h_a and
    h_s, since y_hat depends on them.

    Args:
        codec: with its tables, in eval mode; float, or from `codec.quantization.freeze.frozen`. A quantized transform
            has symbols as its latent if the codec limits them to 8 bits, or levels with means.
        x: a picture [1, 3, H, W] in [0, 1], H and W multiples of 16; the example has the shape that belongs to it.
        dynamic: the graph must accept any H and W.
    """
    if part == "encoder":
        return Exportable(encoder(codec, deconv), x, ("x",), (_latent(codec, "g_a", "y"),))
    with torch.no_grad():
        y = x.new_zeros(1, codec.M, *(side // STRIDE for side in x.shape[2:]))
        symbols = codec.y_model.symbols(y)
    if part == "h_a":
        assert isinstance(codec, HyperCodec)
        seen = in_levels(codec, "h_a", codec.seen_by_h_a(codec.emitted(y)))
        name = "levels" if codec.has_levels("h_a") else "y"
        if not codec.has_means:
            name = "magnitude_levels" if codec.has_levels("h_a") else "magnitudes"
        z = FIFTHS if codec.entropy_bottleneck.in_fifths else "symbols" if codec.has_symbols("h_a") else "z"
        return Exportable(hyper_analysis(codec), seen, (name,), (z,))
    size = None if dynamic else (symbols.shape[2], symbols.shape[3])
    if part == "decoder":
        y_hat = symbols if codec.has_symbols("g_s") else symbols + codec.y_model.medians()
        example = in_levels(codec, "g_s", y_hat)
        return Exportable(decoder(codec, deconv, size), example, (_latent(codec, "g_s", "y_hat"),), ("x_hat",))
    outputs = ("x_hat", "symbols" if codec.has_symbols("g_a") else "y_hat")
    return Exportable(Full(codec, deconv, size), x, ("x",), outputs)


def _latent(codec: Codec, transform: str, in_float: str) -> str:
    """The name of the latent that g_a gives or g_s takes."""
    return "symbols" if codec.has_symbols(transform) else "levels" if codec.has_levels(transform) else in_float


def encoder(codec: Codec, deconv: Deconv) -> nn.Module:
    """g_a. If it gives symbols, its last bias includes the medians, and a rounding with scale 1 follows."""
    g_a = rewrite(in_channels_of_chip(codec, "g_a"), deconv)
    return _centred(g_a, "6", codec.y_model) if codec.has_symbols("g_a") else g_a


def hyper_analysis(codec: HyperCodec) -> nn.Module:
    """h_a. Its last bias includes the medians of z, and if it gives symbols or fifths, a rounding follows."""
    h_a = rewrite(in_channels_of_chip(codec, "h_a"), "transpose")
    return _centred(h_a, "4", codec.entropy_bottleneck)


def _centred(transform: nn.Module, last: str, model: LatentModel) -> nn.Module:
    """Subtracts the medians of its latent in the bias of the last layer, and rounds if the symbols have limits."""
    parameter(transform.get_submodule(last), "bias").sub_(model.medians().flatten())
    return nn.Sequential(transform, Rounding(model.unit)) if model.symbol_limits is not None else transform


def decoder(codec: Codec, deconv: Deconv, size: tuple[int, int] | None) -> nn.Module:
    """g_s. If it accepts symbols, it has additional constant input channels, whose weights add the medians."""
    if not codec.has_symbols("g_s"):
        return rewrite(in_channels_of_chip(codec, "g_s"), deconv)
    g_s = copy.deepcopy(codec.g_s)
    if not codec.y_model.medians().any():
        return nn.Sequential(Rounding(), rewrite(g_s, deconv))
    constants = carry_medians(g_s.get_submodule("0"))
    return nn.Sequential(WithConstants(constants, size), rewrite(g_s, deconv))


class Rounding(nn.Module):
    """Rounds to the integers -128..127 times a scale, as uint8 with this scale and zero point 128."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale)


def rounded(x: Tensor, scale: float = 1.0) -> Tensor:
    """Rounds x to the integers -128..127 times a scale."""
    return torch.fake_quantize_per_tensor_affine(x, scale, SYMBOL_ZERO, 0, 255)


LARGEST = 127
"""The largest value of an 8-bit weight and of a constant channel."""


def carry_medians(layer: nn.Module) -> list[float]:
    """Extends the first deconvolution: its input becomes symbols and constants instead of y_hat = symbols + medians.

    The medians add to an output value the sum of median times weight over the taps inside the picture. Constant input
    channels add the same, also at the borders, where a bias would be wrong. This sum, in units of the weights' scale
    and rounded as in the evaluation, is written as two digits: 8-bit weights of channels with the value 127, and an
    8-bit weight of a channel with the value 1.

    Args:
        layer: a quantized ConvTranspose2d, changed in place.

    Returns:
        The constants of its new input channels.
    """
    assert isinstance(layer, QuantizedLayer)
    assert isinstance(layer, nn.ConvTranspose2d)
    scale = layer.weight_quantizer.scale.view(-1, 1, 1)
    added = layer.medians_through_taps()
    high = (added / LARGEST).round()
    count = max(1, math.ceil(high.abs().max() / LARGEST))
    digits = [(high - LARGEST * i).clamp(0, LARGEST) + (high + LARGEST * i).clamp(-LARGEST, 0) for i in range(count)]
    rows = torch.stack([*digits, added - LARGEST * high]) * scale
    extended = torch.cat([parameter(layer, "weight"), rows.float()])
    layer.register_parameter("weight", constant(extended))
    layer.in_channels = len(extended)
    return [float(LARGEST)] * count + [1.0]


class WithConstants(nn.Module):
    """Symbols [B, M, H, W] to [B, M + number of constants, H, W]."""

    def __init__(self, constants: list[float], size: tuple[int, int] | None) -> None:
        """`size` is H and W if the graph contains the channels as constants; None: they are made at run time."""
        super().__init__()
        values = torch.tensor(constants).view(1, -1, 1, 1)
        self.register_buffer("values", values.expand(1, len(constants), *(size or (1, 1))).clone())
        self.static = size is not None

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.values  # type: ignore[assignment]
        x = rounded(x)
        if not self.static:
            values = values * torch.ones_like(x[:, :1])
        return rounded(torch.cat([x, rounded(values)], 1))


class Full(nn.Module):
    """x [B, 3, H, W] to x_hat [B, 3, H, W] and the symbols, or y_hat, [B, M, H/16, W/16]."""

    encoder: nn.Module
    decoder: nn.Module
    medians: Tensor
    means: "Means | None"

    def __init__(self, codec: Codec, deconv: Deconv, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(encoder(codec, deconv), *on_host(codec, "g_a"))
        self.decoder = nn.Sequential(*on_host(codec, "g_s"), decoder(codec, deconv, size))
        self.gives_symbols, self.takes_symbols = (codec.has_symbols(each) for each in ("g_a", "g_s"))
        self.limits = codec.y_model.symbol_limits
        self.means = Means(codec) if isinstance(codec, HyperCodec) and codec.has_means else None
        self.register_buffer("medians", codec.y_model.medians().clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        symbols = self.encoder(x)
        centres = self.medians if self.means is None else self.means(symbols)
        if not self.gives_symbols:
            symbols = torch.round(symbols - centres)
            symbols = symbols.clamp(*self.limits) if self.limits else symbols
        y_hat = symbols + centres
        return self.decoder(symbols if self.takes_symbols else y_hat), symbols if self.gives_symbols else y_hat


class Means(nn.Module):
    """y [B, M, h, w] to the means that h_a and h_s predict, [B, M, h, w]; files have those of the integer h_s."""

    medians: Tensor

    def __init__(self, codec: HyperCodec) -> None:
        super().__init__()
        h_a = rewrite(in_channels_of_chip(codec, "h_a"), "transpose")
        self.h_a, self.h_s = nn.Sequential(*on_host(codec, "h_a"), h_a), rewrite(codec.h_s, "transpose")
        model = codec.entropy_bottleneck
        self.scale, self.limits = model.unit, model.symbol_limits
        self.register_buffer("medians", model.medians().clone())

    def forward(self, y: Tensor) -> Tensor:
        z = self.h_a(y) - self.medians
        z = rounded(z, self.scale) if self.limits else z
        predicted: Tensor = self.h_s(torch.round(z) + self.medians)
        return predicted.chunk(2, 1)[1][..., : y.shape[-2], : y.shape[-1]]
