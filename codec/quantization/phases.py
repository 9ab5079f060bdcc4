"""Quantization-aware training of a codec's transforms, and post-training calibration by the same means.

    prepare(codec, Quantization("encoder"))     # inserts quantizers; the calibration phase begins
    equalize_channels(codec, pictures)          # cross-layer equalization
    ... steps ...; learn_ranges(codec)          # after each step of the calibration phase
    enter(codec, Phase.FIXED_SCALE)             # fixes the ranges of activations, turns fake quantization on
    round_to_grid(codec, pictures)              # GPTQ rounding of the weights
    enter(codec, Phase.EVAL_READY)              # fixes the scales of weights too
    disable_fake_quant(codec)                   # float again

`build(architecture)` makes a codec as a checkpoint describes it. Without training: `calibrate(codec, pictures, ...)`.

**How an exporter reads it.** `frozen(codec)` gives a copy in eval mode in which every quantizer holds numbers. Its
layers, sums and products count as an int8 runtime does; after `compute_in_float()` of each (`export.graph.rewrite`
calls it), `torch.onnx.export(..., dynamo=False, opset_version=13)` of `codec.g_a` or `codec.g_s` writes QuantizeLinear
and DequantizeLinear. Where the scope names a transform, it is a `torch.fx.GraphModule` (`codec.g_a.graph`), else the
`nn.Sequential` it was. In the graph:

- `call_module` nodes whose module is an `ActivationQuantizer` (`quantizers.input`, `quantizers.after_1`, ...) are the
  uint8 tensors: `frozen` is (scale, zero point). A quantizer may be called again after reshapes and the like: same
  scale, same zero point. A convolution, a sum or a product whose only user is a ReLU, a ReLU6 or a clamp from 0 has no
  quantizer of its own: the one after the rectifier counts, and its range begins at 0, with zero point 0. Clamps whose
  upper bound that range keeps anyway have become ReLUs, which every runtime fuses with the convolution.
- convolutions and linear layers are their own classes with `QuantizedLayer` in front: `layer.weight` is the
  fake-quantized weight, `layer.weight_quantizer.scale` [output channels] (or [1] with `w_per_channel` false) its scale
  and `.axis` the axis of the output channels (0; 1 for transposed convolutions; None without). Zero point 0, -128..127.
  Biases are multiples of the input's scale times the weight's, as int32 holds them, where the input is quantized.
- a `WeightQuantizer` node (`quantizers.of_...`) is the same for a parameter that is used by itself; with zero point 128
  it is uint8, as the activations that it meets.
- Numbers in the graph (`x + 3`) are not quantized: with a scale of their own magnitude they are exact.
- g_a's input has scale 1/255 and zero point 0: a photograph's own bytes. So has g_s's output.

**y, the latent**, and y_hat. g_a's last convolution and g_s's input have no quantizer. Where the symbols of the entropy
model's tables lie in -128..127, `codec.entropy_bottleneck.symbol_limits` is (-128, 127), else None: y stays float in
both transforms then. In evaluation the bottleneck clamps its symbols, round(y - median), to these limits; with the
medians folded into the bias of g_a's last convolution, scale 1 and zero point 128, an int8 encoder emits these very
symbols. Training knows no such limits: a clamp would stop the gradients of the few values that the rate pulls in.
g_s gets y_hat = symbol + median. An int8 decoder takes the symbols (scale 1, zero point 128) and channels that hold
constants, whose integer weights carry what the medians add through each tap of the first deconvolution: exact at the
borders too, where a bias would not be. A unit there is the weight's own scale, so that its rounding shows: evaluation
computes it too (`QuantizedLayer.latent`).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from codec.description.architecture import TRANSFORMS, Architecture, Phase, Quantization
from codec.errors import InputError
from codec.network.codec import Codec
from codec.network.tables import tables_of
from codec.quantization.equalize import equalize
from codec.quantization.graph import insert_quantizers, saturate
from codec.quantization.layers import QuantizedLayer
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer
from codec.quantization.rounding import round_weights

CodecT = TypeVar("CodecT", bound=Codec)

PICTURE = (0.0, 1.0)
"""The range of a picture's values."""

CALIBRATION_PICTURES = 64
"""Pictures that equalization and GPTQ rounding look at, at most."""


def build(architecture: Architecture, cls: type[CodecT] = Codec) -> CodecT:
    """A codec with fresh weights, quantized as the architecture says.

    Args:
        cls: `Codec`, or a class derived from it.
    """
    codec = cls(architecture)
    if architecture.quantization:
        prepare(codec, architecture.quantization)
    return codec


def prepare(codec: Codec, quantization: Quantization) -> None:
    """Puts quantizers into the transforms of the scope, in place, switched as the phase has it.

    A codec that is prepared in a phase of fake quantization is one to load: its ranges come with its weights.
    """
    switches = Switches(in_eval=quantization.eval_fakequant)
    for part in TRANSFORMS[quantization.scope]:
        transform = insert_quantizers(
            getattr(codec, part),
            _example(codec, part),
            switches,
            per_channel=quantization.w_per_channel,
            observer=quantization.act_observer,
            input_range=PICTURE if part == "g_a" else None,
            output_range=PICTURE if part == "g_s" else None,
        )
        setattr(codec, part, transform.to(next(codec.parameters()).device))
    _switch(codec, quantization)


def in_float(codec: Codec) -> Codec:
    """A float codec with the weights of a codec; the codec itself where it is not quantized."""
    if not codec.architecture.quantization:
        return codec
    plain = Codec(replace(codec.architecture, quantization=None))
    added = quantizer_state(codec)
    plain.load_weights({name: tensor for name, tensor in codec.state_dict().items() if name not in added})
    plain.train(codec.training)
    return plain


def enter(codec: Codec, phase: Phase, learning: bool = True) -> None:
    """Switches a prepared codec to a phase, in place; where it is already, nothing happens.

    Args:
        learning: False stops ranges and scales from learning, whatever the phase.

    Raises:
        InputError: fake quantization begins and a tensor has no range yet.
    """
    before = _quantization(codec)
    after = replace(before, phase=phase, learning=learning)
    if after == before:
        return
    if phase.fake_quantizes and not before.phase.fake_quantizes:
        for name, quantizer in activation_quantizers(codec):
            if not quantizer.known:
                raise InputError(
                    f"fake quantization cannot begin: {name} has no range yet; calibrate for a step or more, or start "
                    "from a checkpoint that was quantized"
                )
            quantizer.settle()
    _switch(codec, after)


def _switch(codec: Codec, quantization: Quantization) -> None:
    switches = _switches(codec)
    switches.learn, switches.follow = quantization.learns_ranges, quantization.follows_weights
    switches.quantize = quantization.phase.fake_quantizes
    codec.architecture = replace(codec.architecture, quantization=quantization)
    limit_symbols(codec)


def limit_symbols(codec: Codec) -> None:
    """Tells the bottleneck whether an int8 runtime takes its symbols, and the first layer of g_s of the bottleneck."""
    switches, bottleneck = _switches(codec), codec.entropy_bottleneck
    first = codec.g_s.get_submodule("0")
    if isinstance(first, QuantizedLayer):
        first.wiring.bottleneck = bottleneck
    bottleneck.for_int8 = switches.quantize and switches.in_eval
    bottleneck.limit_symbols()


def disable_fake_quant(codec: Codec) -> None:
    """Float again; `enter` turns it on again. Nothing is forgotten."""
    enter(codec, Phase.OFF)


@torch.no_grad()
def learn_ranges(codec: Codec, reduce: Callable[[Tensor, str], object] | None = None) -> None:
    """Takes what passed since the last call, one optimizer step, into the ranges of the activations.

    Args:
        reduce: makes a tensor its "sum" or "max" over the ranks, in place.
    """
    quantizers = [quantizer for _, quantizer in activation_quantizers(codec) if quantizer.learns]
    seen = torch.stack([quantizer.batch for quantizer in quantizers])
    if reduce:
        reduce(seen, "sum" if _quantization(codec).act_observer == "ema" else "max")
    for quantizer, batch in zip(quantizers, seen, strict=True):
        quantizer.take(batch)


def forget_batches(codec: Codec) -> None:
    """Drops what passed since the last `learn_ranges`, as after a faulty step."""
    for _, quantizer in activation_quantizers(codec):
        quantizer.forget_batch()


@torch.no_grad()
def equalize_channels(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """Cross-layer equalization (`codec.quantization.equalize`), in place; exact in float.

    A transform that has ranges already is left alone, and so is one whose weights share one scale a layer.

    Args:
        codec: prepared, calibrating.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    if not _quantization(codec).w_per_channel:
        return
    with _at_rest(codec, quantize=False):
        for part in TRANSFORMS[_quantization(codec).scope]:
            transform = getattr(codec, part)
            if not any(each.learns and each.known for _, each in activation_quantizers(transform)):
                equalize(transform, _inputs(codec, part, pictures))


@torch.no_grad()
def round_to_grid(codec: Codec, pictures: Sequence[Tensor]) -> None:
    """GPTQ rounding of the weights (`codec.quantization.rounding`), in place; scales that learn are fixed before it.

    Args:
        codec: in a phase of fake quantization.
        pictures: float [B, 3, H, W] in [0, 1] each.
    """
    for layer in codec.modules():
        if isinstance(layer, QuantizedLayer) and _quantization(codec).learning:
            layer.settle()
    with _at_rest(codec, quantize=True):
        for part in TRANSFORMS[_quantization(codec).scope]:
            round_weights(getattr(codec, part), _inputs(codec, part, pictures))


@contextmanager
def _at_rest(codec: Codec, quantize: bool) -> Iterator[None]:
    """In eval mode, with fake quantization on or off, and nothing that learns."""
    switches, training = _switches(codec), codec.training
    before = dict(vars(switches))
    switches.learn, switches.follow, switches.quantize, switches.in_eval = False, False, quantize, True
    codec.eval()
    try:
        yield
    finally:
        codec.train(training)
        vars(switches).update(before)


def _inputs(codec: Codec, part: str, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What a transform gets for pictures."""
    if part == "g_a":
        return list(pictures)
    bottleneck = codec.entropy_bottleneck
    return [bottleneck.symbols(codec.g_a(x)) + bottleneck.medians() for x in pictures]


@torch.inference_mode()
def calibrate(codec: Codec, pictures: Iterable[Tensor], quantization: Quantization) -> Codec:
    """Post-training quantization: a copy in eval mode whose ranges are those of these pictures.

    Args:
        codec: a float codec with its tables.
        pictures: float [B, 3, H, W] in [0, 1] each, sides multiples of 16; a batch is a step of the observers.
        quantization: scope, observer, per channel or not.

    Raises:
        InputError: there is no picture.
    """
    calibrated: Codec = copy.deepcopy(codec).eval()
    if codec.entropy_bottleneck.has_tables:
        calibrated.calibrated_tables = tables_of(codec)
    prepare(calibrated, replace(quantization, phase=Phase.CALIBRATION))
    rest = iter(pictures)
    looked_at = list(islice(rest, CALIBRATION_PICTURES))
    if looked_at:  # else `enter` refuses
        equalize_channels(calibrated, looked_at)
    for x in chain(looked_at, rest):
        calibrated(x)
        learn_ranges(calibrated)
    enter(calibrated, Phase.EVAL_READY)
    round_to_grid(calibrated, looked_at)
    return calibrated


@torch.no_grad()
def frozen(codec: Codec) -> Codec:
    """A copy in eval mode for an exporter: scales and zero points are numbers, fake quantization is on.

    Raises:
        InputError: the codec is not quantized, or it is still calibrating.
    """
    if not _quantization(codec).phase.fake_quantizes:
        raise InputError(
            f"the codec's fake quantization is off (phase {_quantization(codec).phase}): train until --qat_calib_steps "
            "are over, or calibrate it on pictures"
        )
    fixed: Codec = copy.deepcopy(codec).eval().requires_grad_(False)
    _switches(fixed).in_eval = True
    limit_symbols(fixed)
    for part in TRANSFORMS[_quantization(fixed).scope]:
        getattr(fixed, part)(_example(fixed, part))  # where weights' scales still follow the weights, they do it now
    _switches(fixed).follow = False
    for module in fixed.modules():
        if isinstance(module, ActivationQuantizer):
            module.frozen = (float(module.scale), int(module.zero_point))
        elif isinstance(module, WeightQuantizer) and module.axis is None:
            module.frozen = float(module.scale)
    for part in TRANSFORMS[_quantization(fixed).scope]:
        saturate(getattr(fixed, part))
    return fixed


def activation_quantizers(codec: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """The quantizers of activations, by name."""
    return ((name, module) for name, module in codec.named_modules() if isinstance(module, ActivationQuantizer))


def quantizer_state(codec: Codec) -> set[str]:
    """State-dict keys that quantization added."""
    return {
        f"{name}.{buffer}"
        for name, module in codec.named_modules()
        if isinstance(module, ActivationQuantizer | WeightQuantizer)
        for buffer in module.state_dict()
    }


def closed_layers(codec: Codec) -> list[str]:
    """Layers that could not be traced: quantized around, and inside at each convolution alone."""
    parts = TRANSFORMS[_quantization(codec).scope]
    return [f"{part}.{name}" for part in parts for name in getattr(codec, part).closed]


def _example(codec: Codec, part: str) -> Tensor:
    shape = (1, 3, 64, 64) if part == "g_a" else (1, codec.M, 4, 4)
    return torch.zeros(shape, device=next(codec.parameters()).device)


def _quantization(codec: Codec) -> Quantization:
    quantization = codec.architecture.quantization
    if quantization is None:
        raise InputError("the codec is not quantized: prepare it, or give a checkpoint of a run with --qat true")
    return quantization


def _switches(codec: Codec) -> Switches:
    """The switches that all quantizers of a codec share."""
    quantizers = (each for each in codec.modules() if isinstance(each, ActivationQuantizer | WeightQuantizer))
    return next(quantizers).switches
