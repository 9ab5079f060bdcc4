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
    """The gain of each channel of a latent at a rate within 0..1; at the highest rate, 1, all gains are 1.

    A symbol is round(gain * y). There are R trained rates at equal distances, and between them the gains are
    interpolated geometrically. The gains fall with the rate: `drops` holds what they lose from one trained rate to the
    next lower one. Source of gains: Cui et al. 2021, Asymmetric Gained Deep Image Compression with Continuous Rate
    Adaptation (arXiv:2003.02012).

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

    def forward(self, rates: Tensor) -> Tensor:
        """Gains [B, C, 1, 1] to train with, for rates [B]."""
        with torch.autocast(rates.device.type, enabled=False):
            gains = torch.exp2(-(self._shares(rates.float()) @ self._octaves()))
        return gains[:, :, None, None]

    def coded(self, rates: Tensor) -> "CodedGains":
        """The gains of files, for rates [B], which are rounded to the rates of files."""
        last = len(self.exponents) - 1
        numbers = torch.round(rates.double() * last * STEPS).long()
        lower, part = numbers // STEPS, (numbers % STEPS)[:, None]  # in integers, as `Gains.at` of the bitstream
        known = self.exponents.long()
        mixed = known[lower] * (STEPS - part) + known[(lower + 1).clamp(max=last)] * part
        exponents = ((mixed + STEPS // 2) // STEPS)[:, :, None, None]
        whole = (exponents + OCTAVE - 1) // OCTAVE
        powers = self.powers[whole * OCTAVE - exponents]
        fixed = (powers + (torch.ones_like(whole) << whole >> 1)) >> whole
        inverse = self.powers[exponents % OCTAVE] << (exponents // OCTAVE)
        return CodedGains(torch.exp2(-exponents.float() / OCTAVE), fixed.double(), inverse.double())

    def _shares(self, rates: Tensor) -> Tensor:
        """The share of each trained rate in rates [B], as of a linear interpolation: [B, R]."""
        last = len(self.exponents) - 1
        knots = torch.arange(last + 1, device=rates.device, dtype=rates.dtype)
        return (1 - (rates[:, None] * last - knots).abs()).clamp_min(0)

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
