"""Pictures and a quantized codec that the tests of quantization share."""

import pytest
import torch
from quantized_codecs import make, step
from torch import Tensor

from codec.description.architecture import Phase, Quantization
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.phases import enter


@pytest.fixture(scope="session")
def pictures(picture: Tensor) -> list[Tensor]:
    """Four crops of the astronaut, [2, 3, 128, 128] each."""
    return [torch.cat([picture[..., i : i + 128, :128], picture[..., i : i + 128, 256:384]]) for i in (0, 96, 192, 320)]


@pytest.fixture(scope="session")
def trained(pictures: list[Tensor]) -> Codec:
    """A gdnish codec in the eval-ready phase, with tables."""
    codec = make("gdnish", Quantization("all"))
    for x in pictures:
        step(codec, x)
    enter(codec, Phase.FIXED_SCALE)
    step(codec, pictures[0])
    enter(codec, Phase.EVAL_READY)
    return with_tables(codec)
