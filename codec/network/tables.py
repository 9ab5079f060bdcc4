"""The entropy tables of a codec: a copy that has them, and their form for a coder that needs no torch."""

import copy
from dataclasses import asdict
from typing import TypeVar

from torch import Tensor

from codec.bitstream.tables import Tables, tables_of_state
from codec.description.file import Arrays
from codec.network.codec import Codec

CodecT = TypeVar("CodecT", bound=Codec)


def with_tables(codec: CodecT) -> CodecT:
    """A copy of the codec in eval mode with tables of its present weights; the codec itself does not change."""
    fresh: CodecT = copy.deepcopy(codec).eval().requires_grad_(False)
    fresh.refresh_tables()
    return fresh


def tables_of(codec: Codec) -> Tables:
    """The entropy tables of a codec from `with_tables` or a checkpoint; see `tables_of_state`.

    Raises:
        InputError: the codec has no tables.
    """
    if codec.calibrated_tables is not None:
        return codec.calibrated_tables
    return tables_of_state(as_arrays(codec.state_dict()), asdict(codec.architecture.g_s))


def as_arrays(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
