"""Checkpoints that CompressAI's trainer saved. Nothing is unpickled that could run code."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from compressai.models.utils import remap_old_keys
from compressai.zoo.pretrained import load_pretrained
from torch import Tensor

from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.network.codec import Codec


def load_compressai(path: Path) -> Codec:
    """The codec of a file that CompressAI's trainer saved (`.pth.tar`, `.pth`), without tables.

    Raises:
        InputError: the file is no such checkpoint; a pickle that would run code is refused and not run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
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
            architecture = replace(architecture, **{part: BlockChoice("relu")})  # type: ignore[arg-type]
    codec = Codec(architecture)
    codec.load_weights(state)
    return codec
