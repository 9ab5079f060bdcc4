"""The entropy tables of a codec: a copy that has them, and their form for a coder that needs no torch."""

import copy
from dataclasses import asdict
from typing import TypeVar

from codec.bitstream.tables import AnyTables, tables_of_state
from codec.network.arrays import as_arrays
from codec.network.codec import Codec

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
    state = as_arrays(codec.state_dict()) | codec.coding_arrays()
    return tables_of_state(state, asdict(codec.architecture.g_s))
