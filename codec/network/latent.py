"""What every entropy model of a latent offers: symbols around centres, and their limits in an int8 runtime."""

from typing import Any

import torch
from torch import Tensor

from codec.bitstream.hyper_coder import FIFTH
from codec.compressai import EntropyModel
from codec.network.gains import CodedGains

INT8 = (-128, 127)
"""The smallest and the largest symbol of 8 bits."""


class LatentModel(EntropyModel):
    """The part of an entropy model of y or z that quantization, export and files use.

    Attributes:
        for_int8: the codec is fake-quantized in `eval()`: symbols are clamped to 8 bits if `not_int8` is empty.
            `codec.quantization` sets it.
        in_levels: it is y, which a chip has in levels (`codec.quantization.levels`): the host makes the symbols.
        is_scaled: it is z of a codec with several rates: the host scales what a chip gives, and rounds it.
        in_fifths: an int8 runtime gives fifths of a symbol, so that a second rounding costs little; False where more
            than a few symbols would need more than 8 bits then. It is computed with `symbol_limits`.
        symbol_limits: the smallest and the largest symbol in `eval()`; None: no limits. It is computed from `for_int8`
            and the tables, and stored because that reads the tables on the host.
        clamped: buffer [2], int64, not saved: how many symbols were clamped to the limits, and how many there were.
    """

    for_int8: bool = False
    in_levels: bool = False
    is_scaled: bool = False
    in_fifths: bool = False
    symbol_limits: tuple[int, int] | None = None
    clamped: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("clamped", torch.zeros(2, dtype=torch.int64), persistent=False)

    @property
    def unit(self) -> float:
        """What one step of an int8 runtime's latent is in symbols, where it is not in levels."""
        return FIFTH if self.in_fifths else 1.0

    def medians(self) -> Tensor:
        """The medians [1, M, 1, 1]; they are subtracted from y before rounding."""
        raise NotImplementedError

    def symbols(self, y: Tensor) -> Tensor:
        """round(y - median) within the limits, [B, M, H, W], as floats."""
        if self.in_fifths:
            return torch.round(self.centred(y))
        symbols = torch.round(y - self.medians())
        if self.symbol_limits is None:
            return symbols
        limited = symbols.clamp(*self.symbol_limits)
        self.clamped += torch.stack([(symbols != limited).sum(), torch.ones_like(symbols, dtype=torch.int64).sum()])
        return limited

    def given(self, y: Tensor, gains: Tensor, centres: Tensor) -> Tensor:
        """What g_s or h_s gets in training with several rates, [B, M, H, W]: the rounded y.

        The rate stays that of y with noise (Minnen and Singh 2020, arXiv:2007.08739). At a low rate most symbols are
        0, and noise is far larger than what rounding does to y: g_s would learn to remove it, and its activations in
        int8 would have far too wide ranges.

        The error of rounding, in symbols, counts as noise: y gets the gradient of the result, and a gain learns that
        the error becomes smaller as it grows. Without this, only the rate moves the gains, and they fall for ever.

        Args:
            gains: [B, M, 1, 1], symbols are 1 / gain wide.
            centres: of the symbols that are 0: medians or means.
        """
        symbols = (y - centres) * gains
        return y + (symbols.round() - symbols).detach() / gains

    def coded(self, y: Tensor, gains: CodedGains, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The symbols, round(gain * (y - median or mean)), and y_hat as files have it, both [B, M, H, W].

        Where a chip gives symbols of the highest rate, or fifths of them, they are scaled and rounded again.
        """
        centred = self.centred(y) if means is None else y - means
        symbols = torch.round(centred * gains.gain)
        return symbols, gains.decoded(symbols) + (self.medians() if means is None else means)

    def centred(self, y: Tensor) -> Tensor:
        """y less its medians, as the transform gives it in evaluation: an int8 one may give symbols, or fifths."""
        if self.in_fifths:
            return torch.round((y - self.medians()) / self.unit).clamp(*INT8) * self.unit
        return y - self.medians() if self.symbol_limits is None else self.symbols(y)

    def limit_symbols(self) -> None:
        """Sets `symbol_limits` after a change of `for_int8` or of the tables (a host read)."""
        self.symbol_limits = INT8 if self.for_int8 and not self.in_levels and not self.not_int8() else None

    def not_int8(self) -> str:
        """Why 8 bits cannot hold what an int8 runtime has of the latent; empty if they can (a host read)."""
        raise NotImplementedError
