"""Complexity of a codec: exact counts of parameters and multiply-accumulates."""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codec.description.architecture import STRIDE, Architecture
from codec.network.architectures import new_codec
from codec.network.codec import Codec

_SIDE = 4 * STRIDE


def costs(architecture: Architecture) -> dict[str, tuple[int, float]]:
    """Parameters, and multiply-accumulates per pixel of the picture, of "g_a", "g_s", and "h_a", "h_s" if any.

    Convolutions and matrix products are counted; elementwise operations are not.
    """
    with torch.random.fork_rng(devices=[]):  # building draws unused initial weights; keep the random state
        codec = new_codec(replace(architecture, quantization=None)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        codec(torch.zeros(1, 3, _SIDE, _SIDE))
    flops = {name.rpartition(".")[2]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    result = {}
    for name in (name for name in ("g_a", "g_s", "h_a", "h_s") if hasattr(codec, name)):
        parameters = sum(parameter.numel() for parameter in codec.get_submodule(name).parameters())
        result[name] = parameters, flops[name] / 2 / _SIDE**2
    return result


def training_flops(codec: Codec, batch_size: int, side: int) -> int:
    """Floating-point operations of the transforms in a training step, forward and backward: two per MAC.

    Counted from the shapes, on the meta device. Elementwise operations and the entropy model, some thousandths of the
    total, are not counted.

    Args:
        codec: the parameters that train require gradients.
        side: side of the square pictures, a multiple of 16.
    """
    x: Tensor = torch.empty(batch_size, 3, side, side, device="meta")
    g_a, g_s = (copy.deepcopy(transform).to("meta") for transform in (codec.g_a, codec.g_s))
    with FlopCounterMode(display=False) as counter:
        g_s(g_a(x)).sum().backward()
    return int(counter.get_total_flops())
