"""Fits the ranges of activations: finds the range with the least squared error, and adds a margin.

An observer knows the extremes of a tensor, and these are rare: a range that holds them all spends most of its 256 steps
on values that hardly ever occur. A narrower range clips a few values and rounds all others finer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from codec.quantization.quantizers import ActivationQuantizer

WIDTHS = [2.0 ** (i / 4) for i in range(4, -13, -1)]
"""The ranges that are tried, as factors on the observed one: twice as wide to an eighth."""

MARGIN = 1.6
LARGEST_MARGIN = math.sqrt(2)
"""How much wider than the best range the chosen one is: by `MARGIN` over the square root of the number of pictures.

Other pictures have other extremes, fewer if many were seen, and to clip them costs much more than to round a little
coarser. Measured with 24, 64 and 400 crops of photographs (`docs/qat.md`).
"""

BINS = 2**15
"""Of a histogram over the widest range: the narrowest one has 8 bins for each of its steps."""

SAMPLES = 2**16
"""About how many values of a tensor are counted from one batch."""


@torch.no_grad()
def fit_ranges(transform: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Fits the range of each 8-bit activation whose range was learned, in place, and computes its scale anew.

    Args:
        transform: g_a, h_a or g_s, computing in float.
        inputs: its inputs, float [B, C, H, W] each.
    """
    found = [q for q in transform.modules() if isinstance(q, ActivationQuantizer) and q.learns and q.bits == 8]
    pictures = 0
    with _histograms(found) as histograms:
        for x in inputs:
            transform(x)
            pictures += len(x)
    for quantizer, counts in zip(found, histograms, strict=True):
        width = margin(pictures) * WIDTHS[int(_squared_errors(quantizer, counts).argmin())]
        quantizer.low.mul_(width)
        quantizer.high.mul_(width)
        quantizer.fix_scale()


def margin(pictures: int) -> float:
    """What the best width for so many pictures is multiplied by."""
    return min(1 + MARGIN / math.sqrt(pictures), LARGEST_MARGIN)


@contextmanager
def _histograms(quantizers: Sequence[ActivationQuantizer]) -> Iterator[list[Tensor]]:
    """How often values in each bin pass each quantizer meanwhile, int64 [BINS]: of each tensor evenly spread ones."""
    histograms = [torch.zeros(BINS, dtype=torch.int64, device=q.low.device) for q in quantizers]

    def watch(quantizer: ActivationQuantizer, counts: Tensor) -> torch.utils.hooks.RemovableHandle:
        low, bin_width = _bins(quantizer)

        def seen(_: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0].flatten()
            values = values[:: len(values) // SAMPLES | 1]  # an odd distance, out of step with the columns
            bins = ((values.double() - low) / bin_width).long().clamp(0, BINS - 1)
            counts.add_(torch.bincount(bins, minlength=BINS))

        return quantizer.register_forward_pre_hook(seen)

    hooks = [watch(quantizer, counts) for quantizer, counts in zip(quantizers, histograms, strict=True)]
    try:
        yield histograms
    finally:
        for hook in hooks:
            hook.remove()


def _bins(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """Where the first bin begins, and the width of the bins, both float64, 0-dim."""
    low, high = (WIDTHS[0] * end.double() for end in (quantizer.low.clamp(max=0), quantizer.high.clamp(min=0)))
    return low, ((high - low) / BINS).clamp(min=torch.finfo(torch.float64).tiny)


def _squared_errors(quantizer: ActivationQuantizer, counts: Tensor) -> Tensor:
    """The sum of the squared errors of counted values [BINS] at each width, float64 [widths].

    A value beyond the bins counts as one in the first or the last bin.
    """
    low, bin_width = _bins(quantizer)
    values = (low + bin_width * (torch.arange(BINS, device=low.device) + 0.5)).float()
    grids = [quantizer.grid(width) for width in WIDTHS]
    scales, zeros = (torch.stack(each) for each in zip(*grids, strict=True))
    rounded = torch.fake_quantize_per_channel_affine(values.expand(len(grids), -1), scales, zeros, 0, 0, 255)
    return (rounded - values).double().square() @ counts.double()
