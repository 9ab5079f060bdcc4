"""Reads and checks checkpoint files for all programs: safetensors whose metadata describe the codec.

A file may come from a stranger: lengths, types and shapes are checked before memory of that size is allocated.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from coco224.files import in_words, open_regular, parse_json
from codec.description.architecture import Architecture, Scalar
from codec.description.fingerprint import fingerprint
from codec.description.shapes import check_shapes
from codec.description.typed import as_object, from_json
from codec.errors import InputError

FORMAT = "npu-image-codec/1"
TRAINING = "accelerate launch train_accel.py"
"""The command that trains; the first line of a run's config.yaml names it."""
PACKAGES = ("torch", "compressai", "accelerate", "datasets", "numpy", "safetensors")

MOST_HEADER = 2**20
"""Largest header in bytes. The header of a codec with quantizers has 60 kB."""
MOST_BYTES = 2**29
"""Largest file in bytes. CompressAI's largest codec of this kind has 28 MB."""

Arrays = dict[str, NDArray[Any]]
"""A state dict: arrays by name."""


@cache
def _versions() -> dict[str, str]:
    """The installed versions of `PACKAGES`."""
    return {name: version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Description:
    """What a checkpoint records besides weights and architecture.

    Attributes:
        options: the resolved options of the run, under their public names.
        metrics: finite validation figures of these weights; empty without a validation.
        step: optimizer steps done.
        versions: versions of the packages that wrote it.
        dataset: the name of the training data on the Hub; empty for a local folder.
    """

    options: dict[str, Scalar | None] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    versions: dict[str, str] = field(default_factory=lambda: dict(_versions()))
    dataset: str = ""

    def __post_init__(self) -> None:
        """Raises InputError for a negative number of steps, and for figures that are not finite."""
        if self.step < 0:
            raise InputError(f"step {self.step}: a run has done 0 steps or more")
        for name, figure in self.metrics.items():
            if not math.isfinite(figure):
                raise InputError(f"metrics.{name:.40} is {figure}: a figure is a finite number")


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
        content: the bytes of the file.
        arrays: weights and CDF tables.
        architecture: the codec's architecture.
        description: what else the file records.
    """

    content: bytes
    arrays: Arrays
    architecture: Architecture
    description: Description


def to_bytes(arrays: Arrays, architecture: Architecture, description: Description) -> bytes:
    """The content of a checkpoint file."""
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(architecture.as_dict()),
        **{name: json.dumps(value) for name, value in asdict(description).items()},
    }
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata["sha256"] = fingerprint(arrays, metadata)
    contents: bytes = save(arrays, metadata)
    return contents


def read_checkpoint(path: Path) -> CheckpointFile:
    """Reads a checkpoint that this program wrote.

    Raises:
        InputError: the file is missing, damaged, of another program, or its metadata contradict its weights.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        with open_regular(path) as file:
            content, metadata = _read(file)
        arrays = _load(content)
    except OSError as error:
        raise InputError(f"{in_words(error)}; give the path of a checkpoint") from error
    except _Stranger as error:
        raise InputError(f"{path} {error}; give one that this program wrote") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); use another checkpoint") from error
    if metadata.pop("sha256", None) != fingerprint(arrays, metadata):
        raise InputError(f"{path} is damaged: its contents do not match its checksum; use another checkpoint")
    try:
        architecture = from_json(Architecture, _entry(metadata, "architecture"), "architecture")
        described = {each.name: _entry(metadata, each.name) for each in fields(Description) if each.name in metadata}
        description = from_json(Description, described, "metadata")
        _check_arrays(arrays, architecture)
    except (ValueError, InputError) as error:
        raise InputError(f"{path} is no valid checkpoint: {error}; use another one") from error
    return CheckpointFile(content, arrays, architecture, description)


class _Stranger(Exception):
    """Raised for a safetensors file that this program did not write; the message says what the file is."""


def _read(file: BinaryIO) -> tuple[bytes, dict[str, str]]:
    """The content and the metadata; the header is read and checked before the rest."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    if length > MOST_HEADER or size > MOST_BYTES:
        raise _Stranger(f"is too large for a checkpoint: {size:,} bytes, {length:,} of them in its header")
    header = file.read(length)
    metadata = as_object(parse_json(header), "its header").get("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _Stranger("is a safetensors file but no checkpoint of this program")
    return start + header + file.read(), from_json(dict[str, str], metadata, "metadata")


def _load(content: bytes) -> Arrays:
    try:
        arrays: Arrays = load(content)
    except KeyError as error:  # bfloat16 and float8
        raise ValueError(f"it has tensors of type {error}, and checkpoints have float32") from None
    return arrays


def _entry(metadata: dict[str, str], name: str) -> Any:
    """An entry of the metadata, which is JSON in a JSON string."""
    if name not in metadata:
        raise ValueError(f"metadata has no {name}")
    try:
        return parse_json(metadata[name])
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error})") from None


def _check_arrays(arrays: Arrays, architecture: Architecture) -> None:
    """Raises ValueError if the widths contradict the weights, or the weights are not finite.

    Ranges of activations may be infinite: then nothing has been learned yet.
    """
    check_shapes(architecture, {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        if array.dtype.kind == "f" and "quantizer" not in name and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite, its training has diverged")
