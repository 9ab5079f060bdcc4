"""What needs pictures: equalization, fitted ranges, GPTQ rounding, and post-training quantization, which uses all."""

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
from codec.quantization.ranges import fit_ranges
from codec.quantization.rounding import round_weights
from codec.quantization.sensitivity import Result

CALIBRATION_PICTURES = 64
"""The largest number of pictures that post-training quantization, equalization and GPTQ rounding use."""

RANGE_PICTURES = 256
"""The largest number of pictures that a run fits ranges on: the more, the narrower they may be."""

JOINED = 2**16
"""Pixels of small pictures that pass the codec together, which is faster; a larger picture passes alone."""


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
    calibrated, first = with_ranges(codec, pictures, quantization)
    round_to_grid(calibrated, first)
    return calibrated


@torch.no_grad()
def with_ranges(codec: Codec, pictures: Iterable[Tensor], quantization: Quantization) -> tuple[Codec, list[Tensor]]:
    """`calibrate` up to GPTQ rounding: the copy, and the pictures to round its weights with."""
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
    fit_activations(calibrated, first)
    return calibrated, first


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
        for part, inputs in _inputs(codec, pictures):
            transform = getattr(codec, part)
            if not any(q.learns and q.has_range for _, q in activation_quantizers(transform)):
                equalize(transform, inputs, _result(codec, part))


@torch.no_grad()
def fit_activations(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Fits the ranges of activations (`codec.quantization.ranges`), in place, unless they are to stay as they are.

    Args:
        codec: in a phase of fake quantization, with its weights not yet rounded.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    if quantization_of(codec).learning:
        with _in_evaluation(codec, quantize=False):
            for part, inputs in _inputs(codec, pictures):
                fit_ranges(getattr(codec, part), inputs, _result(codec, part))


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
        for part, inputs in _inputs(codec, pictures):
            round_weights(getattr(codec, part), inputs)


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


def _joined(pictures: Sequence[Tensor]) -> list[Tensor]:
    """The same pictures in fewer batches: neighbours of one size together, up to `JOINED` pixels."""
    joined: list[Tensor] = []
    for x in pictures:
        if joined and joined[-1].shape[1:] == x.shape[1:] and (len(joined[-1]) + len(x)) * x[0, 0].numel() <= JOINED:
            joined[-1] = torch.cat([joined[-1], x])
        else:
            joined.append(x)
    return joined


def _result(codec: Codec, part: str) -> Result:
    """From the output of g_a, h_a or g_s to what its error is measured in: x_hat, or for h_a z."""
    return codec.g_s if part == "g_a" else lambda output: output


def _inputs(codec: Codec, pictures: Sequence[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """The quantized transforms in their order, each with its inputs for these pictures, of small ones together.

    The others' inputs come from g_a as it is when it has had its turn.
    """
    pictures = _joined(pictures)
    latents: list[Tensor] = []
    for part in quantization_of(codec).transforms:
        if part == "g_a":
            yield part, pictures
        else:
            latents = latents or [codec.g_a(x) for x in pictures]
            yield part, _inputs_from_y(codec, part, latents)


def _inputs_from_y(codec: Codec, part: str, latents: Sequence[Tensor]) -> list[Tensor]:
    """The inputs of h_a or g_s for values of y; those of g_s at rates that are spread over all."""
    if isinstance(codec, HyperCodec) and part == "h_a":
        return [codec.seen_by_h_a(codec.emitted(y)) for y in latents]
    sizes = [len(y) for y in latents]
    rates = torch.linspace(0, 1, sum(sizes)).split(sizes)
    return [
        codec.quantize(y, None, False, None if codec.y_gains is None else its.to(y))[0]
        for y, its in zip(latents, rates, strict=True)
    ]
