"""The architectures. A new one is a class in a file of its own, an entry here, and its name in `ARCHITECTURES`."""

from codec.description.architecture import Architecture
from codec.network.codec import Codec
from codec.network.factorized import FactorizedCodec
from codec.network.hyperprior import HyperpriorCodec, MeanScaleCodec

_CLASSES: dict[str, type[Codec]] = {cls.arch: cls for cls in (FactorizedCodec, HyperpriorCodec, MeanScaleCodec)}


def new_codec(architecture: Architecture) -> Codec:
    """A float codec with random weights; the architecture's quantization is not applied."""
    codec = _CLASSES[architecture.arch](architecture)
    if architecture.rates > 1:
        codec.add_rates(architecture.rates)
    return codec
