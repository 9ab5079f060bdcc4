"""Checkpoints: one safetensors file that describes itself. Nothing is unpickled that could run code."""

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressai.models.utils import remap_old_keys
from compressai.zoo.pretrained import load_pretrained
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from codec.errors import InputError
from codec.model import Activation, Architecture, Codec

FORMAT = "npu-image-codec/1"
PACKAGES = ("torch", "compressai", "accelerate", "datasets", "numpy", "safetensors")


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself besides its weights.

    Attributes:
        options: the resolved options of the run, under their public names.
        metrics: validation figures of these weights; empty where there was no validation.
        step: optimizer steps done.
        versions: the packages that wrote it.
    """

    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block ends well: synced to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the folder's renames durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_codec(path: Path, codec: Codec, description: Description) -> None:
    """Writes the weights with their CDF tables (call it on `with_tables(codec)`) and everything needed to use them."""
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(codec.architecture)),
        **{name: json.dumps(value) for name, value in asdict(description).items()},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()}
    metadata["sha256"] = fingerprint(tensors, metadata)
    with whole_or_absent(path) as beside:
        beside.write_bytes(save(tensors, metadata))


def load_codec(path: Path) -> tuple[Codec, Description]:
    """Reads a checkpoint of ours, on the CPU, in eval mode.

    Raises:
        InputError: the file is missing, truncated, altered, of another program, or of a block that is not registered.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file but no checkpoint of this program; give one that it wrote")
    if metadata.pop("sha256", None) != fingerprint(tensors, metadata):
        raise InputError(f"{path} is damaged: its contents do not match its checksum; use another checkpoint")
    codec = Codec(Architecture.from_json(json.loads(metadata["architecture"])))
    codec.load_weights(tensors)
    return codec.eval(), Description(**{name: json.loads(metadata[name]) for name in asdict(Description())})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; InputError where it is missing or not whole."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); use another checkpoint") from error


def fingerprint(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over the metadata, and over names, types, shapes and bytes, each in the order of the names."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_initial(path: Path) -> Codec:
    """A codec to start training from: a file of ours, or what CompressAI's trainer saves (`.pth.tar`, `.pth`).

    Raises:
        InputError: it is neither; a pickle that would run code is refused and not run.
    """
    if not path.is_file():
        raise InputError(f"--init_checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        return load_codec(path)[0]
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or "it ends early").splitlines()[0]
        raise InputError(
            f"--init_checkpoint {path}: not read, it is damaged or holds more than tensors, and pickled code is never "
            f"run ({reason}); save its state_dict alone"
        ) from error
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"--init_checkpoint {path}: holds no state_dict of tensors; save the model's state_dict")
    return _from_compressai(path, remap_old_keys("entropy_bottleneck", load_pretrained(state)))


def _from_compressai(path: Path, state: dict[str, Tensor]) -> Codec:
    try:
        architecture = Architecture(state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0])
    except KeyError as error:
        raise InputError(
            f"--init_checkpoint {path}: no bmshj2018_factorized model, it lacks {error}; give one of that model"
        ) from error
    if "g_a.1.gamma" not in state:
        architecture = Architecture(architecture.N, architecture.M, Activation("relu"), Activation("relu"))
    codec = Codec(architecture)
    codec.load_weights(state)
    return codec
