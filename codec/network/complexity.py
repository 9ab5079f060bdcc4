"""What a codec costs: parameters and multiply-accumulates, counted and not estimated."""

import copy

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codec.description.architecture import STRIDE, Architecture
from codec.network.codec import Codec

_SIDE = 4 * STRIDE


def costs(architecture: Architecture) -> dict[str, tuple[int, float]]:
    """Of "g_a" and "g_s": parameters, and multiply-accumulates per pixel of the picture.

    Convolutions and matrix products count; what is done element by element does not.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and nobody wants them
        codec = Codec(Architecture(architecture.N, architecture.M, architecture.g_a, architecture.g_s)).eval()
    x = torch.zeros(1, 3, _SIDE, _SIDE)
    result = {}
    for name, transform in (("g_a", codec.g_a), ("g_s", codec.g_s)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = transform(x)
        parameters = sum(parameter.numel() for parameter in transform.parameters())
        result[name] = parameters, counter.get_total_flops() / 2 / _SIDE**2
    return result


def training_flops(codec: Codec, batch_size: int, side: int) -> int:
    """Floating-point operations of a training step's transforms, forward and backward: two a multiply-accumulate.

    Counted from the shapes alone, on the meta device. Elementwise work and the entropy model, some thousandths of it,
    do not count.

    Args:
        codec: what of it trains requires gradients.
        side: of the square pictures, a multiple of 16.
    """
    x: Tensor = torch.empty(batch_size, 3, side, side, device="meta")
    g_a, g_s = (copy.deepcopy(transform).to("meta") for transform in (codec.g_a, codec.g_s))
    with FlopCounterMode(display=False) as counter:
        g_s(g_a(x)).sum().backward()
    return int(counter.get_total_flops())
