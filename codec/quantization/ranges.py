"""Fits the ranges of activations: finds the range that changes the result least, and adds a margin.

An observer knows the extremes of a tensor, and these are rare: a range that holds them all spends most of its 256 steps
on values that hardly ever occur. A narrower range clips a few values and rounds all others finer. What an error costs
differs from value to value: it counts with the squared gradient of the result (`codec.quantization.sensitivity`). A
gate, for example, makes the largest values of its input smaller, and with them their errors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.quantization.quantizers import ActivationQuantizer
from codec.quantization.sensitivity import Result, with_gradients

WIDTHS = [2.0 ** (i / 8) for i in range(8, -25, -1)]
"""The ranges that are tried, as factors on the observed one: twice as wide to an eighth."""

MARGIN = 0.3
"""How much wider than the best range the chosen one is: by this over the square root of the number of pictures.

Other pictures have other extremes, and fewer of them if many were seen. Measured with 6, 24 and 64 crops of photographs
(`docs/qat.md`).
"""

BINS = 2**15
"""Of a histogram over the widest range: the narrowest one has 8 bins for each of its steps."""

SAMPLES = 2**18
"""About how many values of a tensor are counted from one batch."""

LEAST_WEIGHT = 1e-30
"""Of a value that the result does not depend on: if that is true of a whole tensor, its values count alike."""


@torch.no_grad()
def fit_ranges(transform: nn.Module, inputs: Sequence[Tensor], result: Result) -> None:
    """Fits the range of each 8-bit activation whose range was learned, in place, and computes its scale anew.

    Args:
        transform: g_a, h_a or g_s, computing in float.
        inputs: its inputs, float [B, C, H, W] each.
        result: the tensor whose error matters, from the output of the transform.
    """
    found = [q for q in transform.modules() if isinstance(q, ActivationQuantizer) and q.learns and q.bits == 8]
    histograms = [torch.zeros(BINS, dtype=torch.float64) for _ in found]
    for seen in with_gradients(transform, inputs, result):
        for quantizer, histogram in zip(found, histograms, strict=True):
            for values, gradients in seen.get(quantizer, ()):
                histogram += _histogram(quantizer, values, gradients)
    wider = margin(sum(len(x) for x in inputs))
    for quantizer, histogram in zip(found, histograms, strict=True):
        if histogram.any():  # else no input reached it
            width = wider * WIDTHS[int(_squared_errors(quantizer, histogram).argmin())]
            quantizer.low.mul_(width)
            quantizer.high.mul_(width)
            quantizer.fix_scale()


def margin(pictures: int) -> float:
    """What the best width for so many pictures is multiplied by."""
    return 1 + MARGIN / math.sqrt(pictures)


def _histogram(quantizer: ActivationQuantizer, values: Tensor, gradients: Tensor) -> Tensor:
    """The squared gradients of evenly spread values of a tensor, summed by bin, float64 [BINS], on the CPU.

    There the order of the sums is always the same.
    """
    step = values.numel() // SAMPLES | 1  # an odd distance, out of step with the columns
    low, bin_width = _bins(quantizer)
    bins = values.flatten()[::step].sub(low).div_(bin_width).clamp_(0, BINS - 1).int()
    weights = gradients.flatten()[::step].double().square_().add_(LEAST_WEIGHT)
    return torch.bincount(bins.cpu(), weights.cpu(), BINS)


def _bins(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """Where the first bin begins, and the width of the bins, both float64, 0-dim."""
    low, high = (WIDTHS[0] * end.double() for end in (quantizer.low.clamp(max=0), quantizer.high.clamp(min=0)))
    return low, ((high - low) / BINS).clamp(min=torch.finfo(torch.float32).tiny)


def _squared_errors(quantizer: ActivationQuantizer, histogram: Tensor) -> Tensor:
    """The sum of the squared errors of a histogram's values [BINS] at each width, float64 [widths].

    A value beyond the bins counts as one in the first or the last bin.
    """
    low, bin_width = (each.cpu() for each in _bins(quantizer))
    values = (low + bin_width * (torch.arange(BINS) + 0.5)).float()
    grids = [quantizer.grid(width) for width in WIDTHS]
    scales, zeros = (torch.stack(each).cpu() for each in zip(*grids, strict=True))
    rounded = torch.fake_quantize_per_channel_affine(values.expand(len(grids), -1), scales, zeros, 0, 0, 255)
    return (rounded - values).double().square() @ histogram
