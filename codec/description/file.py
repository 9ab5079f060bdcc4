"""The checkpoint file: safetensors whose metadata describe the codec. Read and checked here, for every program."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from codec.description.architecture import Architecture
from codec.description.fingerprint import fingerprint
from codec.errors import InputError

FORMAT = "npu-image-codec/1"
PACKAGES = ("torch", "compressai", "accelerate", "datasets", "numpy", "safetensors")

Arrays = dict[str, NDArray[Any]]
"""A state dict: arrays by name."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself besides its weights.

    Attributes:
        options: the resolved options of the run, under their public names.
        metrics: validation figures of these weights; empty without a validation.
        step: optimizer steps done.
        versions: the packages that wrote it.
        dataset: the name of the training data on the Hub; empty where it was a local folder.
    """

    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})
    dataset: str = ""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it was read.

    Attributes:
        content: the bytes of the file.
        arrays: weights and CDF tables.
        architecture: what the codec is made of.
        description: what else the file says of itself.
    """

    content: bytes
    arrays: Arrays
    architecture: Architecture
    description: Description


def to_bytes(arrays: Arrays, architecture: Architecture, description: Description) -> bytes:
    """The content of a checkpoint file."""
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(architecture)),
        **{name: json.dumps(value) for name, value in asdict(description).items()},
    }
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata["sha256"] = fingerprint(arrays, metadata)
    contents: bytes = save(arrays, metadata)
    return contents


def read_checkpoint(path: Path) -> CheckpointFile:
    """Reads a checkpoint that this program wrote.

    Raises:
        InputError: the file is missing, truncated, altered, or of another program.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a checkpoint") from error
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); use another checkpoint") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file but no checkpoint of this program; give one that it wrote")
    if metadata.pop("sha256", None) != fingerprint(arrays, metadata):
        raise InputError(f"{path} is damaged: its contents do not match its checksum; use another checkpoint")
    architecture = Architecture.from_json(json.loads(metadata["architecture"]))
    described = [name for name in asdict(Description()) if name in metadata]  # earlier files name no dataset
    description = Description(**{name: json.loads(metadata[name]) for name in described})
    return CheckpointFile(content, arrays, architecture, description)
