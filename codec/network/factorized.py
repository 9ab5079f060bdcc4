"""bmshj2018_factorized: the channels of y are coded independently, each with its learned density."""

from torch import Tensor

from codec.compressai import FactorizedPrior
from codec.network.bottleneck import Bottleneck
from codec.network.codec import Codec


class FactorizedCodec(Codec, FactorizedPrior):
    """CompressAI's `FactorizedPrior` (Balle et al. 2018, arXiv:1802.01436)."""

    arch = "bmshj2018_factorized"

    def quantize(
        self, y: Tensor, keys: Tensor | None, detach_rate: bool, rates: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """See `Codec.quantize`."""
        gains = None
        if self.y_gains is not None:
            rates = y.new_ones(len(y)) if rates is None else rates
            if keys is None:
                coded = self.y_gains.coded(rates)
                (_, y), gains = self.entropy_bottleneck.coded(y, coded), coded.gain
            else:
                gains = self.y_gains(rates)
        y_hat, likelihoods, aux_loss = self.entropy_bottleneck(y, keys, detach_rate, gains)
        return y_hat, {"y": likelihoods}, aux_loss

    @property
    def y_model(self) -> Bottleneck:
        """The entropy bottleneck."""
        return self.entropy_bottleneck
