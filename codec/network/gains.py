"""Gains of a codec with several rates, learned for each channel and rate."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.bitstream.gains import GAIN_BITS, MOST_EXPONENT, OCTAVE, POWERS, STEPS, VALUE_BITS

LEAST_DROP = 1e-4
"""Of the octaves from a rate to the next one at the start, so that they can still change."""


class Gains(nn.Module):
    """The gain of each channel of a latent at a place between the trained rates 0 to R - 1; 1 at the highest rate.

    At rate r a symbol is round(gain * y). The gains rise with the rate: `drops` holds what they lose from a rate to the
    next lower one. Between two rates they are interpolated geometrically. Source of gains: Cui et al., Asymmetric Gained
    Deep Image Compression with Continuous Rate Adaptation, 2021 (arXiv:2003.02012).

    Attributes:
        drops: parameter [R - 1, C]; softplus(drops) are octaves.
        exponents: buffer, int32 [R, C], the gains of files (`codec.bitstream.gains`), from the last `refresh`.
    """

    exponents: Tensor
    powers: Tensor

    def __init__(self, rates: int, channels: int, octaves: float) -> None:
        """`octaves` are those between the gains of the highest and of the lowest rate at the start."""
        super().__init__()
        drop = max(octaves / (rates - 1), LEAST_DROP)
        self.drops = nn.Parameter(torch.full((rates - 1, channels), math.log(math.expm1(drop))))
        self.register_buffer("exponents", torch.zeros(rates, channels, dtype=torch.int32))
        powers = torch.from_numpy(POWERS.astype(np.int64))
        self.register_buffer("powers", powers, persistent=False)
        self.refresh()

    def forward(self, places: Tensor) -> Tensor:
        """Gains [B, C, 1, 1] to train with.

        Args:
            places: [B], each within 0..R - 1.
        """
        with torch.autocast(places.device.type, enabled=False):
            gains = torch.exp2(-(_weights(places.float(), len(self.exponents)) @ self._octaves()))
        return gains[:, :, None, None]

    def coded(self, places: Tensor) -> "CodedGains":
        """The gains of files; places are multiples of 1/64."""
        mixed = _weights(places.double(), len(self.exponents)) @ self.exponents.double()
        exponents = torch.floor(mixed + 0.5).long()[:, :, None, None]
        whole = (exponents + OCTAVE - 1) // OCTAVE
        powers = self.powers[whole * OCTAVE - exponents]
        fixed = (powers + (torch.ones_like(whole) << whole >> 1)) >> whole
        inverse = self.powers[exponents % OCTAVE] << (exponents // OCTAVE)
        return CodedGains(torch.exp2(-exponents.float() / OCTAVE), fixed.double(), inverse.double())

    def _octaves(self) -> Tensor:
        """What the gains of each rate lose, in octaves [R, C]; 0 at the highest rate."""
        lost = F.softplus(self.drops).flip(0).cumsum(0).flip(0)
        return torch.cat([lost, torch.zeros_like(lost[:1])])

    @torch.no_grad()
    def refresh(self) -> None:
        """Computes the gains of files from the learned ones."""
        exponents = torch.round(OCTAVE * self._octaves().double()).clamp(0, MOST_EXPONENT)
        self.exponents.copy_(exponents.to(torch.int32))


class CodedGains:
    """The gains of files for a batch, all [B, C, 1, 1], as in `codec.bitstream.gains.Scaling`.

    Attributes:
        gain: float32.
        fixed, inverse: the gain and 1 / gain in units of 2^-16, integers in float64.
    """

    def __init__(self, gain: Tensor, fixed: Tensor, inverse: Tensor) -> None:
        self.gain, self.fixed, self.inverse = gain, fixed, inverse

    def decoded(self, symbols: Tensor) -> Tensor:
        """symbol / gain, rounded to a multiple of 1/64, of symbols [B, C, H, W]."""
        values = torch.floor(symbols.double() * self.inverse * 2.0 ** (VALUE_BITS - GAIN_BITS) + 0.5)
        return (values * 2.0**-VALUE_BITS).to(symbols.dtype)


def highest(rates: int, batch: Tensor) -> Tensor:
    """The place of the highest rate for each picture of a batch, [B]."""
    return torch.full((len(batch),), rates - 1.0, device=batch.device)


def place_of(rate: int) -> float:
    """The place of a rate of files."""
    return rate / STEPS


def _weights(places: Tensor, rates: int) -> Tensor:
    """The shares of the trained rates at each place [B, R]: those of a linear interpolation."""
    knots = torch.arange(rates, device=places.device, dtype=places.dtype)
    return (1 - (places[:, None] - knots).abs()).clamp_min(0)
