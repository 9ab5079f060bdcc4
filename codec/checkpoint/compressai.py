"""Reads checkpoints that CompressAI's trainer saved. Pickled code is never run."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coco224.files import in_words, open_regular
from codec.compressai import load_pretrained, remap_old_keys
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice
from codec.description.file import MOST_BYTES
from codec.description.shapes import check_shapes
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.bottleneck import TABLES
from codec.network.codec import Codec

CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which trainers save a state dict."""

FIRST = "g_a.0.weight"
_PREFIXED = re.compile(rf"((?:_orig_mod\.|module\.|model\.|net\.)*){re.escape(FIRST)}")
"""Finds the first weight; torch.compile, data parallelism and wrappers put prefixes before its name."""


def load_compressai(path: Path) -> Codec:
    """The codec of a file that CompressAI's trainer saved (`.pth.tar`, `.pth`), without tables.

    The state dict may be under one of `CONTAINERS`, and its keys may have prefixes. Weights of other float types
    become float32.

    Raises:
        InputError: the file is not such a checkpoint. A pickle that would run code is refused.
    """
    saved = _unpickle(path)
    state = next((found for mapping in _mappings(saved) if (found := _without_prefix(mapping))), None)
    if state is None:
        names = [name for mapping in _mappings(saved) for name in mapping if isinstance(name, str)]
        what = f"its entries are {', '.join(names[:3])}, ..." if names else f"it is a {type(saved).__name__}"
        raise InputError(
            f"{path}: no codec of {', '.join(ARCHITECTURES)}: it lacks {FIRST} ({what}); save such a model's state_dict"
        )
    try:
        return _from_compressai(_checked(state, path.stat().st_size))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _unpickle(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with open_regular(path) as file, warnings.catch_warnings(action="ignore"):  # of a pickle's protocol
            size = path.stat().st_size
            unpacked = sum(item.file_size for item in zipfile.ZipFile(file).infolist()) if _is_zip(file) else size
            if max(size, unpacked) > MOST_BYTES:
                raise InputError(f"{path} is too large for a checkpoint: {max(size, unpacked):,} bytes")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{in_words(error)}; give a file that can be read") from error
    except InputError:
        raise
    except Exception as error:  # junk makes the unpickler raise whatever it trips over
        raise InputError(
            f"{path}: not read, it is damaged, no checkpoint, or holds more than tensors, and pickled code is never "
            "run; give a checkpoint, or save the model's state_dict alone"
        ) from error


def _is_zip(file: Any) -> bool:
    found: bool = zipfile.is_zipfile(file)
    file.seek(0)
    return found


def _mappings(saved: Any, depth: int = 3) -> Iterator[Mapping[Any, Any]]:
    """The saved mapping and the mappings in its containers, the outermost first."""
    if isinstance(saved, Mapping):
        yield saved
        for name in CONTAINERS:
            if depth and name in saved:
                yield from _mappings(saved[name], depth - 1)


def _without_prefix(mapping: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The entries that share the prefix of the first weight, without it; None where there is no such weight."""
    names = [name for name in mapping if isinstance(name, str)]
    prefix = next((match[1] for name in names if (match := _PREFIXED.fullmatch(name))), None)
    if prefix is None:
        return None
    return {name.removeprefix(prefix): mapping[name] for name in names if name.startswith(prefix)}


def _checked(state: dict[str, Any], size: int) -> dict[str, Tensor]:
    """The weights as float32. CDF tables, which are rebuilt, and entries that are not tensors are left out.

    Args:
        size: bytes of the file. Tensors that claim more are expanded views or overlap.
    """
    tensors = load_pretrained({name: value for name, value in state.items() if isinstance(value, Tensor)})
    weights = {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in TABLES}
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            raise InputError(f"{name} is {tensor.dtype}, {tensor.layout}, and weights are floats; save the float model")
        size -= tensor.numel() * tensor.element_size()
        if size < 0:
            raise InputError(f"{name} claims the shape {list(tensor.shape)}, more than the file holds; save it again")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} is not finite; its training has diverged, use an earlier checkpoint")
    floats = {name: tensor.detach().float().contiguous() for name, tensor in weights.items()}
    try:
        renamed: dict[str, Tensor] = remap_old_keys("entropy_bottleneck", floats)
    except IndexError:
        raise InputError("a name begins with entropy_bottleneck and is none of its parameters") from None
    return renamed


def _arch(state: dict[str, Tensor], channels: int) -> str:
    """The architecture of a state dict whose y has so many channels; h_s predicts scales, or scales and means."""
    if "h_s.4.weight" not in state:
        return "bmshj2018_factorized"
    return "mbt2018_mean" if state["h_s.4.weight"].shape[:1] == (2 * channels,) else "bmshj2018_hyperprior"


def _from_compressai(state: dict[str, Tensor]) -> Codec:
    shapes = {name: list(state[name].shape) if name in state else [] for name in (FIRST, "g_a.6.weight")}
    first, last = shapes.values()
    if first[1:] != [3, 5, 5] or last[1:] != [first[0], 5, 5] or not first[0] or not last[0]:
        found = " and ".join(f"{name} {shape or 'missing'}" for name, shape in shapes.items())
        raise InputError(f"no codec of {', '.join(ARCHITECTURES)}: {found}, and they have [N, 3, 5, 5], [M, N, 5, 5]")
    architecture = Architecture(first[0], last[0], arch=_arch(state, last[0]))
    for part in ("g_a", "g_s"):
        if f"{part}.1.gamma" not in state:
            architecture = replace(architecture, **{part: BlockChoice("relu")})  # type: ignore[arg-type]
    try:
        check_shapes(architecture, {name: tuple(tensor.shape) for name, tensor in state.items()})
    except ValueError as error:
        raise InputError(f"no codec of {architecture.arch}: {error}; save such a model's state_dict") from None
    codec = new_codec(architecture)
    codec.load_weights(state)
    return codec
