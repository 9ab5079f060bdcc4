"""Tries a new block on small maps."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from codec.blocks.guard import code_of_block
from codec.errors import InputError

_STORED = (
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def try_out(where: str, block: nn.Module, channels: int, built_in: bool) -> None:
    """Tries a copy of a block; a user's in training too, on a map of another size.

    Args:
        where: names the block in errors.
        built_in: it is no user's.

    Raises:
        InputError: it fails, the output has another shape or type or is not finite, or a checkpoint cannot hold the
            weights.
    """
    with code_of_block(f"{where} gives a module that cannot be copied"):
        tested = copy.deepcopy(block)
    with torch.no_grad():
        y = _output(where, tested, _map(1, channels, 8, 8), training=False)
    if not y.isfinite().all():
        raise InputError(f"{where} gives NaN or Inf for numbers from -1 to 1")
    if built_in or torch.is_inference_mode_enabled():
        return
    _check_state(where, block)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout draws
        x = _map(2, channels, 6, 10).requires_grad_() * 1  # even, as the sizes of all maps; a leaf forbids in place
        y = _output(where, tested, x, training=True)
        with code_of_block(f"{where} fails in the backward of a map {list(x.shape)}"):
            if y.requires_grad:
                y.sum().backward()
        with torch.no_grad():  # as large as in a training: half of 224 x 224 pixels
            _output(where, tested, _map(1, channels, 112, 112), training=False)
    with code_of_block(f"{where} does not load the state dict that it gives"):
        tested.load_state_dict(block.state_dict())


def _map(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32).view(shape)


def _output(where: str, block: nn.Module, x: Tensor, *, training: bool) -> Tensor:
    with code_of_block(f"{where} fails on a map {list(x.shape)}{' in training' if training else ''}"):
        y = block.train(training)(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        made = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"{where} maps {list(x.shape)} to {made}: a block keeps the shape")
    for kept in ("dtype", "layout", "device"):
        if getattr(y, kept) != getattr(x, kept):
            raise InputError(f"{where} maps {getattr(x, kept)} to {getattr(y, kept)}: a block keeps the {kept}")
    return y


def _check_state(where: str, block: nn.Module) -> None:
    """Raises InputError for a state dict that a checkpoint cannot hold."""
    with code_of_block(f"{where}: its state_dict() fails"):
        for name, value in block.state_dict().items():
            if is_lazy(value):
                raise InputError(f"{where}: {name} has no shape yet: use no lazy module")
            if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
                made = f"a tensor of {value.layout} on {value.device}" if isinstance(value, Tensor) else repr(value)
                raise InputError(f"{where}: {name} of its state dict is {made}: a checkpoint holds dense tensors")
            if value.dtype not in _STORED:
                raise InputError(f"{where}: {name} of its state dict has {value.dtype}: use torch.float32")
            if not value.isfinite().all():
                raise InputError(f"{where}: {name} of its state dict has NaN or Inf, which no checkpoint may hold")
