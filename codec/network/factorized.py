"""bmshj2018_factorized: the channels of y are coded independently, each with its learned density."""

from compressai.models import FactorizedPrior
from torch import Tensor

from codec.network.bottleneck import Bottleneck
from codec.network.codec import Codec


class FactorizedCodec(Codec, FactorizedPrior):
    """CompressAI's `FactorizedPrior` (Balle et al. 2018, arXiv:1802.01436)."""

    arch = "bmshj2018_factorized"

    def quantize(self, y: Tensor, keys: Tensor | None, detach_rate: bool) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """See `Codec.quantize`."""
        y_hat, likelihoods, aux_loss = self.entropy_bottleneck(y, keys, detach_rate)
        return y_hat, {"y": likelihoods}, aux_loss

    @property
    def y_model(self) -> Bottleneck:
        """The entropy bottleneck."""
        return self.entropy_bottleneck
