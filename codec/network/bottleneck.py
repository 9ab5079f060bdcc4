"""The entropy model: CompressAI's bottleneck, changed so that it compiles and exports, with counter-based noise."""

import copy
from typing import TypeVar

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from codec.errors import InputError

CodecT = TypeVar("CodecT", bound=nn.Module)

TABLES = ("_quantized_cdf", "_offset", "_cdf_length")
"""Names of the buffers that hold the CDF tables."""

MOST_SQUARED = 4e9
"""Largest sum over channels of (symbols of the CDF table)^2. The time to build tables is proportional: here 7 seconds.

Trained codecs have about a hundred symbols per channel; for 192 channels the limit is 4500 per channel.
"""

INT8 = (-128, 127)
"""The smallest and the largest symbol of 8 bits."""


def noise_keys(seed: int, step: int, places: Tensor) -> Tensor:
    """Keys of the quantization noise: a function of seed, optimizer step and place in the global batch.

    Args:
        places: int64 [B], the samples' places in the global batch.

    Returns:
        int64 [B], 32-bit values. A sample gets the same noise on every rank and with every accumulation.
    """
    return _hash32(_hash32(_hash32(places & _MASK) ^ (step & _MASK)) ^ (seed & _MASK))


def uniform_noise(keys: Tensor, shape: torch.Size) -> Tensor:
    """Uniform noise in [-0.5, 0.5), float32 [B, *shape], from one key per sample.

    A counter-based generator: element i of a sample is a hash of (key, i), so it needs no state, runs inside a compiled
    graph and gives the same bits on every device.
    """
    counter = torch.arange(shape.numel(), device=keys.device)
    bits = _hash32(_hash32(counter) ^ keys[:, None])
    return ((bits >> 8).to(torch.float32) * 2.0**-24 - 0.5).view(-1, *shape)


_MASK = 0xFFFFFFFF


def _hash32(x: Tensor) -> Tensor:
    """A 32-bit xor-shift-multiply hash in int64; the constants are below 2**31, so no product overflows."""
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & _MASK
    x = ((x ^ (x >> 12)) * 0x297A2D39) & _MASK
    return x ^ (x >> 15)


class Bottleneck(EntropyBottleneck):
    """CompressAI's `EntropyBottleneck` (Balle et al. 2018, arXiv:1802.01436, appendix 6.1) with a static transpose.

    The parameters, buffers and tables are CompressAI's own, so state dicts load both ways. Only `forward` differs:
    the parent builds its permutation as a tensor and reads it back, which breaks `torch.compile` and `torch.export`.

    Attributes:
        for_int8: the codec is fake-quantized in `eval()`: symbols are clamped to 8 bits if the tables' symbols fit.
            `codec.quantization` sets it.
        symbol_limits: the smallest and the largest symbol in `eval()`; None: no limits. It is computed from `for_int8`
            and the tables, and stored because that reads the tables on the host.
    """

    for_int8: bool = False
    symbol_limits: tuple[int, int] | None = None

    def forward(
        self, y: Tensor, keys: Tensor | None = None, detach_rate: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes the latent and gives its likelihood.

        Args:
            y: [B, M, H, W].
            keys: int64 [B] from `noise_keys`: additive uniform noise (training); None: rounding to the nearest
                symbol around the medians.
            detach_rate: the likelihoods' gradient reaches the entropy model but not y.

        Returns:
            y_hat [B, M, H, W], likelihoods [B, M, H, W], and the auxiliary loss of the quantiles (0-dim; zero when the
            quantiles do not train).
        """
        y_hat = self.symbols(y) + self.medians() if keys is None else y + uniform_noise(keys, y.shape[1:])
        rated = y_hat.detach() if detach_rate else y_hat
        by_channel = rated.transpose(0, 1)
        likelihoods, _, _ = self._likelihood(by_channel.reshape(by_channel.shape[0], 1, -1))
        likelihoods = self.likelihood_lower_bound(likelihoods).view(by_channel.shape).transpose(0, 1)
        with torch.autocast(y.device.type, enabled=False):
            aux_loss = self.loss() if self.quantiles.requires_grad else likelihoods.new_zeros(())
        return y_hat, likelihoods, aux_loss

    def medians(self) -> Tensor:
        """The medians [1, M, 1, 1]; they are subtracted from y before rounding."""
        medians: Tensor = self.quantiles[:, 0, 1].detach().view(1, -1, 1, 1)
        return medians

    def symbols(self, y: Tensor) -> Tensor:
        """round(y - median) within the limits, [B, M, H, W], as floats."""
        symbols = torch.round(y - self.medians())
        return symbols if self.symbol_limits is None else symbols.clamp(*self.symbol_limits)

    def update(self, force: bool = False, update_quantiles: bool = False) -> bool:
        """Builds the CDF tables as in CompressAI, then sets `symbol_limits` from them.

        Raises:
            InputError: densities are not finite, or so flat or wide that building their tables would take minutes.
        """
        if update_quantiles and (force or not self.has_tables):
            self._update_quantiles()
        widths = (self.quantiles[:, 0, 2] - self.quantiles[:, 0, 0]).detach().double()
        if not widths.square().sum() <= MOST_SQUARED:
            raise InputError(
                f"the densities of the entropy model are too wide for CDF tables, up to {float(widths.max()):.0f} "
                "symbols in a channel; its training has diverged, use an earlier checkpoint"
            )
        try:
            changed: bool = super().update(force)
        except ValueError as error:
            raise InputError(
                f"the densities of the entropy model give no CDF ({error}); its training has diverged, use an earlier "
                "checkpoint"
            ) from error
        self.limit_symbols()
        return changed

    def limit_symbols(self) -> None:
        """Sets `symbol_limits` after a change of `for_int8` or of the tables (a host read)."""
        self.symbol_limits = INT8 if self.for_int8 and self.symbols_fit(*INT8) else None

    @property
    def has_tables(self) -> bool:
        """Whether the codec has CDF tables; a codec in training has none."""
        return bool(self._offset.numel() > 0)

    def symbol_range(self) -> tuple[int, int]:
        """The smallest and the largest symbol of the tables (a host read); others are coded with an escape."""
        last = self._offset + self._cdf_length - 3  # the length counts a 0 at the start and the escape symbol too
        return int(self._offset.min()), int(last.max())

    def symbols_fit(self, low: int, high: int) -> bool:
        """Whether the codec has tables and all their symbols are in low..high (a host read)."""
        if not self.has_tables:
            return False
        least, greatest = self.symbol_range()
        return low <= least and greatest <= high


def with_tables(codec: CodecT) -> CodecT:
    """A copy of the codec in eval mode after `refresh_tables`; the codec itself does not change."""
    fresh = copy.deepcopy(codec).eval().requires_grad_(False)
    refresh_tables(fresh)
    return fresh


def refresh_tables(codec: nn.Module) -> None:
    """Rebuilds a codec's medians and CDF tables from its densities, in place.

    Bisection finds the quantiles to 1e-3, even if the auxiliary loss has not converged. Stale CDF tables are the most
    common reason why files are larger than their likelihoods say.

    Raises:
        InputError: a parameter of the entropy model is not finite, or a density is too wide for a table.
    """
    for name, parameter in codec.named_parameters():
        if name.startswith("entropy_bottleneck.") and not torch.isfinite(parameter).all():
            raise InputError(f"{name} of this codec is not finite; start from an earlier checkpoint")
    codec.update(force=True, update_quantiles=True)  # type: ignore[operator]
