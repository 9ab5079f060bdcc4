"""What the entropy tables of every architecture take from a checkpoint's arrays. Needs no torch."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.rows import Rows
from codec.description.fingerprint import fingerprint
from codec.errors import InputError

State = Mapping[str, NDArray[Any]]

NO_TABLES = "this codec has no CDF tables; give a checkpoint that training wrote"


def rows_of(state: State, model: str) -> Rows:
    """The CDF rows of an entropy model of CompressAI's.

    Raises:
        InputError: it has none.
    """
    names = [f"{model}.{name}" for name in ("_offset", "_cdf_length", "_quantized_cdf")]
    if not all(name in state and state[name].size for name in names):
        raise InputError(NO_TABLES)
    return Rows(*(state[name].copy() for name in names))


def medians_of(state: State) -> NDArray[np.float32]:
    """The medians of the entropy bottleneck, [C].

    Raises:
        InputError: the quantiles are missing, or have another form than CompressAI's.
    """
    quantiles = state.get("entropy_bottleneck.quantiles", np.empty(0))
    if not quantiles.size:
        raise InputError(NO_TABLES)
    if quantiles.shape[1:] != (1, 3):
        raise InputError(f"quantiles of shape {quantiles.shape}; an entropy model has [M, 1, 3]")
    medians: NDArray[np.float32] = quantiles[:, 0, 1].copy()
    return medians


def decoder_fingerprint(state: State, g_s: dict[str, Any], read: dict[str, NDArray[Any]], **words: str) -> int:
    """The 32 bits that identify what decodes a file: the arrays `read`, g_s with its block, and `words`."""
    weights = {name: array for name, array in state.items() if name.startswith("g_s.") and "quantizer" not in name}
    return int(fingerprint(read | weights, {"g_s": json.dumps(g_s, sort_keys=True), **words})[:8], 16)
