"""Checkpoints: one safetensors file that describes itself. Nothing is unpickled that could run code."""

import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressai.models.utils import remap_old_keys
from compressai.zoo.pretrained import load_pretrained
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from coco224.files import whole_or_absent
from codec.entropy import with_tables
from codec.errors import InputError
from codec.fingerprint import fingerprint
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
        dataset: the training data's name on the Hub; empty where it was a folder of the machine that trained.
    """

    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})
    dataset: str = ""


def save_codec(path: Path, codec: Codec, description: Description) -> None:
    """Writes a checkpoint, whole or not at all."""
    with whole_or_absent(path) as beside:
        beside.write_bytes(as_file(codec, description))


def as_file(codec: Codec, description: Description) -> bytes:
    """A checkpoint's contents: weights and CDF tables (of `with_tables(codec)`) and everything needed to use them."""
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(codec.architecture)),
        **{name: json.dumps(value) for name, value in asdict(description).items()},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()}
    metadata["sha256"] = fingerprint(as_arrays(tensors), metadata)
    contents: bytes = save(tensors, metadata)
    return contents


def load_codec(path: Path) -> tuple[Codec, Description]:
    """Reads a checkpoint of ours, on the CPU, in eval mode.

    Raises:
        InputError: the file is missing, truncated, altered, of another program, or of a block that is not registered.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file but no checkpoint of this program; give one that it wrote")
    if metadata.pop("sha256", None) != fingerprint(as_arrays(tensors), metadata):
        raise InputError(f"{path} is damaged: its contents do not match its checksum; use another checkpoint")
    codec = Codec(Architecture.from_json(json.loads(metadata["architecture"])))
    codec.load_weights(tensors)
    described = [name for name in asdict(Description()) if name in metadata]  # earlier files name no dataset
    return codec.eval(), Description(**{name: json.loads(metadata[name]) for name in described})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; InputError where it is missing or not whole."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); use another checkpoint") from error


def as_arrays(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """The tensors as numpy knows them."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def open_codec(path: Path) -> Codec:
    """A codec to use, in eval mode with its tables: a checkpoint of ours as it is, or CompressAI's with fresh tables.

    Raises:
        InputError: it is neither.
    """
    return load_codec(path)[0] if path.suffix == ".safetensors" else with_tables(load_initial(path))


def load_initial(path: Path) -> Codec:
    """A codec to start training from: a file of ours, or what CompressAI's trainer saves (`.pth.tar`, `.pth`).

    Raises:
        InputError: it is neither; a pickle that would run code is refused and not run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return load_codec(path)[0]
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle's protocol: what comes of it is said below
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read") from error
    except Exception as error:  # junk makes the unpickler raise whatever it trips over
        raise InputError(
            f"{path}: not read, it is damaged, no checkpoint, or holds more than tensors, and pickled code is never "
            "run; give a checkpoint, or save the model's state_dict alone"
        ) from error
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state_dict of tensors; save the model's state_dict")
    return _from_compressai(path, remap_old_keys("entropy_bottleneck", load_pretrained(state)))


def _from_compressai(path: Path, state: dict[str, Tensor]) -> Codec:
    try:
        architecture = Architecture(state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0])
    except KeyError as error:
        raise InputError(f"{path}: no bmshj2018_factorized model, it lacks {error}; give one of that model") from error
    for part in ("g_a", "g_s"):
        if f"{part}.1.gamma" not in state:
            architecture = replace(architecture, **{part: Activation("relu")})  # type: ignore[arg-type]
    codec = Codec(architecture)
    codec.load_weights(state)
    return codec
