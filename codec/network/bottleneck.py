"""The entropy model: CompressAI's bottleneck, changed so that it compiles and exports, with counter-based noise."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.bitstream.density import MOST_ENTRIES
from codec.bitstream.hyper_coder import FIFTH
from codec.compressai import EntropyBottleneck
from codec.errors import InputError
from codec.network.latent import INT8, LatentModel

TABLES = ("_quantized_cdf", "_offset", "_cdf_length")
"""Names of the buffers that hold the CDF tables."""

MOST_SQUARED = 4e9
"""Largest sum over channels of (symbols of the CDF table)^2. The time to build tables is proportional: here 7 seconds.

Trained codecs have about a hundred symbols per channel; for 192 channels the limit is 4500 per channel.
"""

RARE = 0.01
"""Largest probability of a symbol that an int8 runtime clamps, for the sake of finer steps of the others."""


def noise_keys(seed: int, step: int, places: Tensor) -> Tensor:
    """Keys of the quantization noise: a function of seed, optimizer step and place in the global batch.

    Args:
        places: int64 [B], the samples' places in the global batch.

    Returns:
        int64 [B], 32-bit values. A sample gets the same noise on every rank and with every accumulation.
    """
    return _hash32(_hash32(_hash32(places & _MASK) ^ (step & _MASK)) ^ (seed & _MASK))


def other_keys(keys: Tensor) -> Tensor:
    """Keys of another noise for the same samples, for a second latent."""
    return _hash32(keys ^ 0x5BD1E995)


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


def computes_sums(values: Tensor) -> bool:
    """Whether the densities' matrix products, 3x3 per channel, are computed as sums: in code compiled for a GPU.

    There the sums become parts of a few loops; as products they are 34 library calls, which write all their results to
    memory. On a CPU, and where nothing is compiled, the products are faster.
    """
    return values.device.type != "cpu" and torch.compiler.is_compiling()


class Bottleneck(LatentModel, EntropyBottleneck):
    """CompressAI's `EntropyBottleneck` (Balle et al. 2018, arXiv:1802.01436, appendix 6.1) with a static transpose.

    The parameters, buffers and tables are CompressAI's own, so state dicts load both ways. `forward` differs: the
    parent builds its permutation as a tensor and reads it back, which breaks `torch.compile` and `torch.export`. And
    compiled for a GPU, the likelihood is computed in another way, with the same values up to rounding.
    """

    def forward(
        self, y: Tensor, keys: Tensor | None = None, detach_rate: bool = False, gains: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes the latent and gives its likelihood.

        Args:
            y: [B, M, H, W].
            keys: int64 [B] from `noise_keys`: additive uniform noise (training); None: rounding to the nearest
                symbol around the medians.
            detach_rate: the likelihoods' gradient reaches the entropy model but not y.
            gains: [B, M, 1, 1], symbols are 1 / gain wide; None: 1. In evaluation y must be rounded already.

        Returns:
            y_hat [B, M, H, W], likelihoods [B, M, H, W], and the auxiliary loss of the quantiles (0-dim; zero when the
            quantiles do not train).
        """
        if keys is not None:
            noise = uniform_noise(keys, y.shape[1:])
            y_hat = y + (noise if gains is None else noise / gains)
        else:
            y_hat = self.symbols(y) + self.medians() if gains is None else y
        likelihoods = self.likelihoods(y_hat.detach() if detach_rate else y_hat, gains)
        with torch.autocast(y.device.type, enabled=False):
            aux_loss = self.loss() if self.quantiles.requires_grad else likelihoods.new_zeros(())
        if keys is not None and gains is not None:
            y_hat = self.given(y, gains, self.medians())
        return y_hat, likelihoods, aux_loss

    def likelihoods(self, y_hat: Tensor, gains: Tensor | None = None) -> Tensor:
        """The likelihoods of quantized values [B, M, H, W]: of a symbol's width, 1 / gain, around each."""
        by_channel = y_hat.transpose(0, 1)
        values = by_channel.reshape(by_channel.shape[0], 1, -1)
        if gains is None:
            found, _, _ = self._likelihood(values)
        else:
            half = (0.5 / gains).expand_as(y_hat).transpose(0, 1).reshape(values.shape)
            below, above = (torch.sigmoid(self._logits_cumulative(values + each, False)) for each in (-half, half))
            found = above - below
        bounded: Tensor = self.likelihood_lower_bound(found).view(by_channel.shape).transpose(0, 1)
        return bounded

    def _likelihood(self, inputs: Tensor, stop_gradient: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """CompressAI's method: the likelihood of values [M, 1, n], and the logits half a symbol below and above."""
        if not computes_sums(inputs):
            likelihood, lower, upper = super()._likelihood(inputs, stop_gradient)
            return likelihood, lower, upper
        halves = torch.arange(2, device=inputs.device) - 0.5
        lower, upper = self._logits_cumulative(inputs + halves.view(2, 1, 1, 1), stop_gradient).unbind()
        return torch.sigmoid(upper) - torch.sigmoid(lower), lower, upper

    def _logits_cumulative(self, inputs: Tensor, stop_gradient: bool) -> Tensor:
        """CompressAI's method: the logits of the cumulative densities at values [..., M, 1, n], in the same shape."""
        if not computes_sums(inputs):
            logits: Tensor = super()._logits_cumulative(inputs, stop_gradient)
            return logits

        def part(parameter: Tensor) -> Tensor:
            return parameter.detach() if stop_gradient else parameter

        rows = [inputs[..., 0, :]]
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            weights, offsets = F.softplus(part(matrix)), part(bias)
            rows = [
                sum((weights[:, k, j, None] * row for j, row in enumerate(rows)), offsets[:, k])
                for k in range(len(offsets[0]))
            ]
            if i < len(self.filters):
                factors = torch.tanh(part(self.factors[i]))
                rows = [row + factors[:, k] * torch.tanh(row) for k, row in enumerate(rows)]
        return rows[0].unsqueeze(-2)

    def medians(self) -> Tensor:
        """The medians [1, M, 1, 1]; they are subtracted from y before rounding."""
        medians: Tensor = self.quantiles[:, 0, 1].detach().view(1, -1, 1, 1)
        return medians

    def update(self, force: bool = False, update_quantiles: bool = False) -> bool:
        """Builds the CDF tables as in CompressAI, then sets `symbol_limits` from them.

        Raises:
            InputError: densities are not finite, or so flat or wide that building their tables would take minutes.
        """
        if update_quantiles and (force or not self.has_tables):
            self._update_quantiles()
        widths = (self.quantiles[:, 0, 2] - self.quantiles[:, 0, 0]).detach().double()
        if not (widths.square().sum() <= MOST_SQUARED and widths.max() * len(widths) <= MOST_ENTRIES):
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

    def rebuild(self) -> None:
        """Medians and CDF tables from the densities, as `update` makes them, whatever tables there are.

        They are computed on the host: a GPU would start thousands of small kernels, and wait for many of them.
        """
        host = copy.deepcopy(self).cpu()
        host.update(force=True, update_quantiles=True)
        self.quantiles.data.copy_(host.quantiles)
        for name in TABLES:
            self.register_buffer(name, getattr(host, name).to(self.quantiles.device))
        self.limit_symbols()

    @property
    def has_tables(self) -> bool:
        """Whether the codec has CDF tables; a codec in training has none."""
        return bool(self._offset.numel() > 0)

    def symbol_range(self) -> tuple[int, int]:
        """The smallest and the largest symbol of the tables (a host read); others are coded with an escape."""
        last = self._offset + self._cdf_length - 3  # the length counts a 0 at the start and the escape symbol too
        return int(self._offset.min()), int(last.max())

    def limit_symbols(self) -> None:
        """Sets `in_fifths` too: symbols whose fifths need more than 8 bits are clamped, and must be rare."""
        super().limit_symbols()
        limited = self.symbol_limits is not None and self.is_scaled
        self.in_fifths = limited and self._share_beyond(INT8[0] * FIFTH, INT8[1] * FIFTH) <= RARE

    def _share_beyond(self, low: float, high: float) -> float:
        """The probability of a symbol below low or above high by the tables, in the channel where it is largest."""
        frequencies = self._quantized_cdf.diff(dim=1).clamp(min=0)  # a row ends with zeros
        symbols = self._offset[:, None] + torch.arange(frequencies.shape[1], device=frequencies.device)
        beyond = (frequencies * ((symbols < low) | (symbols > high))).sum(1)
        return float((beyond / frequencies.sum(1)).max())

    def not_int8(self) -> str:
        """See `LatentModel`; the symbols of the tables decide, others are coded with an escape. Levels always fit."""
        if self.in_levels:
            return ""
        if not self.has_tables:
            return "there are no CDF tables"
        low, high = self.symbol_range()
        return (
            ""
            if INT8[0] <= low and high <= INT8[1]
            else f"the CDF tables' symbols are {low}..{high}, beyond {INT8[0]}..{INT8[1]}"
        )
