"""Quantization-aware training (QAT) of a codec's transforms: inserts quantizers and switches their phases.

    prepare(codec, Quantization("encoder"))     # inserts quantizers; the calibration phase begins
    equalize_channels(codec, pictures)          # cross-layer equalization
    ... steps ...; learn_ranges(codec)          # after each step of the calibration phase
    enter(codec, Phase.FIXED_SCALE)             # fixes the ranges of activations, turns fake quantization on
    fit_activations(codec, pictures)            # narrows ranges whose extremes are rare
    round_to_grid(codec, pictures)              # GPTQ rounding of the weights
    enter(codec, Phase.EVAL_READY)              # fixes the scales of weights too
    disable_fake_quant(codec)                   # float again

`build(architecture)` makes a codec as a checkpoint describes it. Post-training quantization, equalization, fitted
ranges and GPTQ rounding are in `codec.quantization.calibrate`; what an exporter gets is in `codec.quantization.freeze`.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from codec.description.architecture import Architecture, Phase, Quantization
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.quantization.graph import insert_quantizers
from codec.quantization.layers import FACTORS, QuantizedLayer
from codec.quantization.levels import Levels, levels_of, refine_weights, set_steps, with_levels
from codec.quantization.observers import Reduction, observer_named
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer
from codec.quantization.widen import widen

PICTURE_RANGE = (0.0, 1.0)
MAGNITUDE_RANGE = (0.0, 255.0)
"""Gives magnitudes of symbols the scale 1."""


def build(architecture: Architecture) -> Codec:
    """A codec with fresh weights, quantized as the architecture says.

    Raises:
        InputError: the architecture names an unknown observer.
    """
    codec = new_codec(architecture)
    if architecture.quantization:
        prepare(codec, architecture.quantization)
    return codec


def prepare(codec: Codec, quantization: Quantization) -> None:
    """Inserts quantizers into the transforms of the scope, in place, and sets their switches for the phase.

    If the phase is one of fake quantization, load the ranges with the weights before the codec is used.

    Raises:
        InputError: the observer is unknown, or a glob of `a16` matches no tensor.
    """
    switches = Switches(in_eval=quantization.eval_fakequant)
    for part in quantization.transforms:
        transform = insert_quantizers(
            with_levels(codec, part),
            example_input(codec, part),
            switches,
            per_channel=quantization.w_per_channel,
            observer=observer_named(quantization.act_observer),
            input_range=_input_range(codec, part),
            output_range=PICTURE_RANGE if part == "g_s" else None,
        )
        setattr(codec, part, transform.to(next(codec.parameters()).device))
    _set_phase(codec, quantization)
    if quantization.a16:
        give_16_bits(codec, quantization.a16)
    refine_weights(codec)


def _input_range(codec: Codec, part: str) -> tuple[float, float] | None:
    """The range of a transform's input; None for y_hat, and for y, whose levels have one."""
    if part == "h_a" and not codec.y_model.in_levels:
        return MAGNITUDE_RANGE
    return PICTURE_RANGE if part == "g_a" else None


def in_float(codec: Codec) -> Codec:
    """A float codec with the weights of a quantized codec; a codec that is not quantized is returned itself."""
    if not codec.architecture.quantization:
        return codec
    plain = new_codec(replace(codec.architecture, quantization=None))
    folded = copy.deepcopy(codec)
    for _, levels in itertools.islice(levels_of(folded), 1):
        set_steps(folded, torch.ones_like(levels.step), torch.ones_like(levels.splits))
    for layer in folded.modules():
        if isinstance(layer, QuantizedLayer):
            layer.fold()
    added = quantizer_state(folded)
    plain.load_weights({name: tensor for name, tensor in folded.state_dict().items() if name not in added})
    plain.load_coding_arrays(codec.coding_arrays())
    plain.train(codec.training)
    return plain


def enter(codec: Codec, phase: Phase, learning: bool = True) -> None:
    """Switches a prepared codec to a phase, in place; if it is in this phase already, nothing happens.

    Args:
        learning: False stops ranges and scales from learning in every phase.

    Raises:
        InputError: fake quantization begins and a tensor has no range yet.
    """
    before = quantization_of(codec)
    after = replace(before, phase=phase, learning=learning)
    if after == before:
        return
    if phase.fake_quantizes and not before.phase.fake_quantizes:
        for name, quantizer in activation_quantizers(codec):
            if not quantizer.has_range:
                raise InputError(
                    f"fake quantization cannot begin: {name} has no range yet; calibrate for a step or more, or start "
                    "from a checkpoint that was quantized"
                )
            quantizer.fix_scale()
    _set_phase(codec, after)


def _set_phase(codec: Codec, quantization: Quantization) -> None:
    """Sets the switches for the phase, and keeps the phase in the codec's architecture."""
    switches = switches_of(codec)
    switches.learn, switches.follow = quantization.learns_ranges, quantization.follows_weights
    switches.quantize = quantization.phase.fake_quantizes
    codec.architecture = replace(codec.architecture, quantization=quantization)
    limit_symbols(codec)


def limit_symbols(codec: Codec) -> None:
    """Tells the entropy models whether an int8 runtime has their symbols, and the first layer of g_s that of y."""
    switches = switches_of(codec)
    first = codec.g_s.get_submodule("0")
    if isinstance(first, QuantizedLayer):
        first.wiring.y_model = codec.y_model
    for part, model in codec.entropy_models.items():
        of_chip = part == "g_a" or part in quantization_of(codec).transforms  # y is also the input of g_s
        model.for_int8 = of_chip and switches.quantize and switches.in_eval
        model.limit_symbols()


def disable_fake_quant(codec: Codec) -> None:
    """Makes the codec compute in float again. Ranges and scales stay; `enter` turns fake quantization on again."""
    enter(codec, Phase.OFF)


@torch.no_grad()
def learn_ranges(
    codec: Codec, reduce: Callable[[Tensor, Reduction], object] | None = None, skipped: Tensor | None = None
) -> None:
    """Moves the ranges of activations by what was observed since the last call, which is one optimizer step.

    Args:
        reduce: replaces a tensor by its "sum" or "max" over the ranks, in place.
        skipped: bool, 0-dim: the step does not count, and what was observed is dropped; None: it counts.
    """
    quantizers = [quantizer for _, quantizer in activation_quantizers(codec) if quantizer.learns]
    batches = torch.stack([quantizer.batch for quantizer in quantizers])
    if reduce:
        reduce(batches, observer_named(quantization_of(codec).act_observer).reduction)
    for quantizer, batch in zip(quantizers, batches, strict=True):
        quantizer.update_range(batch, skipped)


def activation_quantizers(codec: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """The quantizers of activations, with their names."""
    return ((name, module) for name, module in codec.named_modules() if isinstance(module, ActivationQuantizer))


def give_16_bits(codec: Codec, globs: str) -> None:
    """Gives activations 16 bits, in place, by globs of their names (`tensor_name`), comma-separated.

    Tensors with a given range stay as they are: pictures, symbols, levels and magnitudes have 8 bits by their nature,
    and a sigmoid's grid is one that chips require.

    Raises:
        InputError: a glob matches no tensor that learns its range.
    """
    tensors = {tensor_name(name): quantizer for name, quantizer in activation_quantizers(codec) if quantizer.learns}
    for glob in globs.split(","):
        matching = [name for name in tensors if fnmatchcase(name, glob)]
        if not matching:
            raise InputError(f"a16 {glob}: no quantized activation has this name; there are {', '.join(tensors)}")
        for name in matching:
            tensors[name].bits = 16
    for part in quantization_of(codec).transforms:
        widen(getattr(codec, part))


def wide_activations(codec: Codec, *parts: str) -> list[str]:
    """The names of the activations with 16 bits in these transforms."""
    quantizers = ((name, each) for name, each in activation_quantizers(codec) if name.split(".")[0] in parts)
    return [tensor_name(name) for name, quantizer in quantizers if quantizer.bits == 16]


def tensor_name(quantizer: str) -> str:
    """The name of the tensor that a quantizer's name stands for, as in `g_s.after_5_outer`."""
    return quantizer.replace("quantizers.", "")


def quantizer_state(codec: Codec) -> set[str]:
    """The state-dict keys that quantization added."""
    modules = list(codec.named_modules())
    layers = (name for name, module in modules if isinstance(module, QuantizedLayer))
    return {f"{name}.{factor}" for name in layers for factor in FACTORS} | {
        f"{name}.{buffer}"
        for name, module in modules
        if isinstance(module, ActivationQuantizer | WeightQuantizer | Levels)
        for buffer in module.state_dict()
    }


def closed_layers(codec: Codec) -> list[str]:
    """Layers that could not be traced: quantized before and after, and around each convolution inside."""
    parts = quantization_of(codec).transforms
    return [f"{part}.{name}" for part in parts for name in getattr(codec, part).closed]


def example_input(codec: Codec, part: str) -> Tensor:
    """A small input of g_a, h_a or g_s, all zeros."""
    shape = (1, 3, 64, 64) if part == "g_a" else (1, codec.M, 4, 4)
    return torch.zeros(shape, device=next(codec.parameters()).device)


def quantization_of(codec: Codec) -> Quantization:
    """How a codec is quantized.

    Raises:
        InputError: it is not.
    """
    quantization = codec.architecture.quantization
    if quantization is None:
        raise InputError("the codec is not quantized: prepare it, or give a checkpoint of a run with --qat true")
    return quantization


def switches_of(codec: Codec) -> Switches:
    """The switches that all quantizers of a codec share."""
    quantizers = (m for m in codec.modules() if isinstance(m, ActivationQuantizer | WeightQuantizer))
    return next(quantizers).switches
