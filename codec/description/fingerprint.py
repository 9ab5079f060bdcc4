"""The fingerprint of a set of weights. Needs no torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprint(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata, then of the arrays' names, types, shapes and bytes, both in the order of names."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} torch.{array.dtype} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
