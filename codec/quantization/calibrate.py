"""What needs pictures: cross-layer equalization, GPTQ rounding, and post-training quantization, which uses both."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor

from codec.description.architecture import Phase, Quantization
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.tables import tables_of
from codec.quantization.equalize import equalize
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import fit_levels
from codec.quantization.phases import (
    activation_quantizers,
    enter,
    learn_ranges,
    prepare,
    quantization_of,
    switches_of,
)
from codec.quantization.rounding import round_weights

CALIBRATION_PICTURES = 64
"""The largest number of pictures that equalization and GPTQ rounding use."""


@torch.no_grad()
def calibrate(codec: Codec, pictures: Iterable[Tensor], quantization: Quantization) -> Codec:
    """Post-training quantization: a quantized copy in eval mode with the ranges of these pictures.

    Args:
        codec: a float codec with its tables.
        pictures: float [B, 3, H, W] in [0, 1] each, sides multiples of 16; each batch is a step of the observers.
        quantization: its scope, observer and `w_per_channel` are used.

    Raises:
        InputError: there is no picture.
    """
    calibrated: Codec = copy.deepcopy(codec).eval()
    if codec.entropy_bottleneck.has_tables:
        calibrated.calibrated_tables = tables_of(codec)
    prepare(calibrated, replace(quantization, phase=Phase.CALIBRATION))
    rest = iter(pictures)
    first = list(islice(rest, CALIBRATION_PICTURES))
    if first:  # without a picture `enter` refuses
        equalize_channels(calibrated, first)
    for x in chain(first, rest):
        calibrated(x)
        learn_ranges(calibrated)
    enter(calibrated, Phase.EVAL_READY)
    round_to_grid(calibrated, first)
    return calibrated


@torch.no_grad()
def equalize_channels(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Cross-layer equalization (`codec.quantization.equalize`), in place; the float codec stays the same.

    It skips a transform that has learned ranges already, and all transforms if weights share one scale a layer.

    Args:
        codec: prepared, in the calibration phase.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    if not quantization_of(codec).w_per_channel:
        return
    with _in_evaluation(codec, quantize=False):
        for part in quantization_of(codec).transforms:
            transform = getattr(codec, part)
            if not any(q.learns and q.has_range for _, q in activation_quantizers(transform)):
                equalize(transform, _inputs(codec, part, pictures))


@torch.no_grad()
def round_to_grid(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """GPTQ rounding of the weights (`codec.quantization.rounding`), in place, with scales from the weights as they are.

    The steps of y's levels are chosen before, if the codec has any.

    Args:
        codec: in a phase of fake quantization.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    with _in_evaluation(codec, quantize=False):
        fit_levels(codec, pictures)
    for layer in codec.modules():
        if isinstance(layer, QuantizedLayer) and quantization_of(codec).learning:
            layer.update_weight_scale()
    with _in_evaluation(codec, quantize=True):
        for part in quantization_of(codec).transforms:
            round_weights(getattr(codec, part), _inputs(codec, part, pictures))


@contextmanager
def _in_evaluation(codec: Codec, quantize: bool) -> Iterator[None]:
    """Puts the codec into eval mode, with fake quantization on or off, and stops all learning; restores it after."""
    switches, training = switches_of(codec), codec.training
    before = dict(vars(switches))
    switches.learn, switches.follow, switches.quantize, switches.in_eval = False, False, quantize, True
    codec.eval()
    try:
        yield
    finally:
        codec.train(training)
        vars(switches).update(before)


def _inputs(codec: Codec, part: str, pictures: Sequence[Tensor]) -> list[Tensor]:
    """The inputs of g_a, h_a or g_s for pictures; those of g_s at rates that are spread over all."""
    if part == "g_a":
        return list(pictures)
    if isinstance(codec, HyperCodec) and part == "h_a":
        return [codec.seen_by_h_a(codec.emitted(codec.g_a(x))) for x in pictures]
    rates = torch.linspace(0, 1, len(pictures)) if codec.y_gains is not None else None
    return [
        codec.quantize(codec.g_a(x), None, False, None if rates is None else rates[i].to(x).expand(len(x)))[0]
        for i, x in enumerate(pictures)
    ]
