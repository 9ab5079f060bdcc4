"""The entropy tables of a codec: a copy that has them, and their form for a coder that needs no torch."""

import copy
from dataclasses import asdict
from typing import TypeVar

from torch import Tensor

from codec.bitstream.hyper_tables import PREFIX, network_arrays, source
from codec.bitstream.tables import AnyTables, tables_of_state
from codec.description.file import Arrays
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.integer import integer_h_s

CodecT = TypeVar("CodecT", bound=Codec)


def with_tables(codec: CodecT) -> CodecT:
    """A copy of the codec in eval mode with tables of its present weights; the codec itself does not change."""
    fresh: CodecT = copy.deepcopy(codec).eval().requires_grad_(False)
    fresh.refresh_tables()
    return fresh


def tables_of(codec: Codec) -> AnyTables:
    """The entropy tables of a codec from `with_tables` or a checkpoint; see `tables_of_state`.

    Raises:
        InputError: the codec has no tables.
    """
    if codec.calibrated_tables is not None:
        return codec.calibrated_tables
    state = as_arrays(codec.state_dict())
    if isinstance(codec, HyperCodec) and codec.entropy_bottleneck.has_tables:
        gaussian = codec.gaussian_conditional
        network = integer_h_s(codec.h_s, codec.entropy_bottleneck, gaussian.scale_table, codec.has_means)
        state |= {PREFIX + name: array for name, array in network_arrays(network, source(state)).items()}
    return tables_of_state(state, asdict(codec.architecture.g_s))


def as_arrays(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
