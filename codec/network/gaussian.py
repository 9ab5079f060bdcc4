"""The entropy model of y in a codec with a hyperprior: a Gaussian whose scale, and mean, the hyperprior predicts."""

import torch
from torch import Tensor

from codec.compressai import GaussianConditional, get_scale_table
from codec.network import bottleneck
from codec.network.latent import LatentModel

TABLES = (*bottleneck.TABLES, "scale_table")
"""Names of the buffers that hold the CDF tables, one for each scale."""


class Gaussian(LatentModel, GaussianConditional):
    """CompressAI's `GaussianConditional` (Balle et al. 2018, arXiv:1802.01436) with counter-based noise.

    The buffers and tables are CompressAI's own, so state dicts load both ways.

    Attributes:
        has_means: y is coded around a predicted mean; False: around zero.
    """

    has_means: bool = False

    def __init__(self, channels: int, has_means: bool) -> None:
        """`channels` are those of y."""
        super().__init__(None)
        self.channels, self.has_means = channels, has_means
        self.in_levels = has_means

    @staticmethod
    def _standardized_quantile(quantile: float) -> float:
        """As CompressAI's, to the last bit, without a second to import scipy.stats."""
        return float(torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64)))

    def forward(
        self,
        y: Tensor,
        scales: Tensor,
        means: Tensor | None = None,
        keys: Tensor | None = None,
        detach_rate: bool = False,
        gains: Tensor | None = None,
        symbols: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Quantizes the latent and gives its likelihood.

        Args:
            y: [B, M, H, W].
            scales, means: the Gaussian of each value [B, M, H, W]; scales are in symbols and bounded below by 0.11.
            keys: int64 [B] from `noise_keys`: additive uniform noise (training); None: rounding around the mean.
            detach_rate: the likelihoods' gradient reaches scales and means but not y.
            gains: [B, M, 1, 1], symbols are 1 / gain wide; None: 1. In evaluation y must be rounded already.
            symbols: of y, if they are known and there are no means, noise or gains.

        Returns:
            y_hat and likelihoods, both [B, M, H, W].
        """
        if gains is not None:
            y_hat = y if keys is None else y + bottleneck.uniform_noise(keys, y.shape[1:]) / gains
            rated = y_hat.detach() if detach_rate else y_hat
            centred = rated if means is None else rated - means
            if keys is not None:
                y_hat = self.given(y, gains, self.medians() if means is None else means)
            return y_hat, self.likelihood_lower_bound(self._likelihood(centred * gains, scales))
        if symbols is not None:
            y_hat = symbols
        elif keys is not None:
            y_hat = y + bottleneck.uniform_noise(keys, y.shape[1:])
        else:
            y_hat = self.symbols(y) if means is None else self.symbols(y - means) + means
        likelihoods = self._likelihood(y_hat.detach() if detach_rate else y_hat, scales, means)
        return y_hat, self.likelihood_lower_bound(likelihoods)

    def medians(self) -> Tensor:
        """Zero: a Gaussian without a mean is symmetric."""
        zeros: Tensor = self.scale_bound.new_zeros(1, self.channels, 1, 1)
        return zeros

    def not_int8(self) -> str:
        """Empty: symbols around zero are clamped to 8 bits, and with means the chip has levels of y."""
        return ""

    def build_tables(self) -> None:
        """Builds the CDF table of each of CompressAI's 64 scales, if there is none: they do not depend on weights."""
        self.update_scale_table(get_scale_table())
        self.limit_symbols()
