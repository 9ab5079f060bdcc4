"""Reads checkpoints that CompressAI's trainer saved. Pickled code is never run."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coco224.files import in_words, open_regular
from codec.checkpoint.torch_file import SavedTensor, TorchFile
from codec.compressai import load_pretrained, remap_old_keys
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice
from codec.description.file import MOST_BYTES
from codec.description.shapes import check_shapes
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.bottleneck import TABLES
from codec.network.codec import Codec

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "ema_state_dict", "model", "module", "net", "network",
              "net_g", "generator", "student", "compressor", "params", "weights", "best_state", "params_ema", "ema",
              "model_ema", "ema_model")  # fmt: skip
"""Keys under which trainers save a state dict."""

FIRST = "g_a.0.weight"
BESIDE = frozenset({"step", "global_step", "epoch", "n_averaged", "num_updates", "decay", "loss", "criterion", "lpips",
                    "perceptual", "vgg", "discriminator"})  # fmt: skip
"""How the names of entries begin that trainers keep beside a codec's weights."""
_WRAPPERS = "_orig_mod|_forward_module|module|model|net|network|net_g|generator|student|compressor|codec"
_PREFIXED = re.compile(rf"((?:(?:{_WRAPPERS})\.)*){re.escape(FIRST)}")
"""Finds the first weight; torch.compile, data parallelism and wrappers put prefixes before its name."""


def load_compressai(path: Path) -> Codec:
    """The codec of a file that CompressAI's trainer saved (`.pth.tar`, `.pth`), without tables.

    The state dict may be under one of `CONTAINERS`, and its keys may have prefixes. Weights of other float types
    become float32.

    Raises:
        InputError: the file is not such a checkpoint. A pickle that would run code is refused.
    """
    try:
        if not path.exists():
            raise InputError("no such file; give the path of a checkpoint")
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise InputError(f"too large for a checkpoint: {size:,} bytes; save the model's state_dict alone")
            content = TorchFile(file, size)
            weights = _weights(content, _state(content.saved), size)
        return _from_compressai(weights)
    except OSError as error:
        raise InputError(f"{in_words(error)}; give a checkpoint that can be read") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _state(saved: Any) -> dict[str, Any]:
    """The state dict of a codec in what was saved."""
    state = next((found for mapping in _mappings(saved) if (found := _without_prefix(mapping))), None)
    if state is None:
        names = [name for mapping in _mappings(saved) for name in mapping]
        kind = "Tensor" if isinstance(saved, SavedTensor) else type(saved).__name__
        what = f"its entries are {', '.join(names[:3])}, ..." if names else f"it is a {kind}"
        raise InputError(
            f"no codec of {', '.join(ARCHITECTURES)}: it lacks {FIRST} ({what}); save such a model's state_dict"
        )
    return state


def _mappings(saved: Any, depth: int = 3) -> Iterator[dict[str, Any]]:
    """The saved mapping and the mappings in its containers, the outermost first."""
    if isinstance(saved, dict):
        yield saved
        for name in CONTAINERS:
            if depth and name in saved:
                yield from _mappings(saved[name], depth - 1)


def _without_prefix(mapping: dict[str, Any]) -> dict[str, Any] | None:
    """The entries with the prefix of the first weight, without it and `BESIDE`; None if there is no such weight."""
    prefix = next((match[1] for name in mapping if (match := _PREFIXED.fullmatch(name))), None)
    if prefix is None:
        return None
    own = {name.removeprefix(prefix): value for name, value in mapping.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if name.partition(".")[0] not in BESIDE}


def _weights(content: TorchFile, state: dict[str, Any], size: int) -> dict[str, Tensor]:
    """The weights as float32. CDF tables, which are rebuilt, and entries that are not tensors are left out.

    Args:
        size: bytes of the file. Tensors that claim more are expanded views or overlap.
    """
    tensors = load_pretrained({name: value for name, value in state.items() if isinstance(value, SavedTensor)})
    weights = {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in TABLES}
    floats: dict[str, Tensor] = {}
    for name, saved in weights.items():
        if saved.obstacle:
            raise InputError(
                f"{name} {saved.obstacle}, and weights are dense, of float16, bfloat16, float32 or float64; save it "
                "with such weights"
            )
        size -= saved.size
        if size < 0:
            raise InputError(f"{name} claims the shape {list(saved.shape)}, more than the file holds; save it again")
        floats[name] = content.tensor(saved).float().contiguous()
        if not torch.isfinite(floats[name]).all():
            raise InputError(f"{name} is not finite; its training has diverged, use an earlier checkpoint")
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
