"""Quantization-aware training inside a run: when its phases begin, and the ranges that ranks agree on."""

import torch
from torch import Tensor, fx, nn

from coco224.dataset import Rows
from codec.description.architecture import TRANSFORMS, Quantization
from codec.errors import InputError
from codec.network.bottleneck import INT8
from codec.network.codec import Codec, gdn_layers
from codec.quantization.calibrate import CALIBRATION_PICTURES
from codec.quantization.phases import (
    activation_quantizers,
    closed_layers,
    enter,
    forget_batches,
    learn_ranges,
    prepare,
    quantizer_state,
)
from training.data import DataOptions, first_batches
from training.distributed import reduce_over_ranks
from training.phases import QatOptions, phase_of


def check_regions(codec: Codec, fp32_modules: list[str]) -> None:
    """Refuses regions of local FP32 that lie on a block whose operations the quantized graph runs by themselves.

    Raises:
        InputError: naming the region.
    """
    for name in fp32_modules:
        part, _, inside = name.partition(".")
        transform = codec.get_submodule(part)
        if inside and isinstance(transform, fx.GraphModule) and all(n.target != inside for n in transform.graph.nodes):
            raise InputError(
                f"--local_fp32 would keep {name} in FP32, and with --qat true that block is no unit of its own; use "
                "--amp false, as is advised with QAT, or --local_fp32 entropy or entropy+decoder"
            )


def quantize(codec: Codec, qat: QatOptions, initial: Codec | None) -> None:
    """Prepares a codec for the run, in place; ranges that the initial codec has already are where it starts from.

    Args:
        initial: None for a run that goes on: its state has the ranges.

    Raises:
        InputError: no step would learn ranges, and there are none to start from.
    """
    prepare(
        codec,
        Quantization(
            scope=qat.qat_scope,
            act_observer=qat.qat_act_observer,
            w_per_channel=qat.qat_w_per_channel,
            eval_fakequant=qat.qat_eval_fakequant,
        ),
    )
    if initial is None:
        return
    earlier = initial.state_dict()
    own = codec.state_dict()
    ranges = {
        key: earlier[key]
        for key in quantizer_state(codec)
        if key in earlier and earlier[key].shape == own[key].shape and not key.endswith(".steps")
    }
    nn.Module.load_state_dict(codec, ranges, strict=False)
    if 0 in (qat.qat_calib_steps, qat.qat_disable_observer_step):
        unknown = [name for name, quantizer in activation_quantizers(codec) if not quantizer.has_range]
        if unknown:
            raise InputError(
                f"--qat_calib_steps {qat.qat_calib_steps} --qat_disable_observer_step {qat.qat_disable_observer_step}: "
                f"no step learns ranges and {unknown[0]} has none yet; calibrate, or start from a checkpoint of a run "
                "with the same --qat_scope"
            )


def enter_phase(codec: Codec, qat: QatOptions, step: int) -> None:
    """Switches a quantized codec to the phase of the optimizer step that is about to begin (0-based)."""
    if qat.qat:
        enter(codec, phase_of(qat, step), learning=not 0 <= qat.qat_disable_observer_step <= step)


def calibration_pictures(rows: Rows, data: DataOptions, seed: int, device: torch.device) -> list[Tensor]:
    """The pictures that equalization and GPTQ rounding look at, [1, 3, H, W] in [0, 1] each."""
    return list(first_batches(rows, data, seed, 1, min(CALIBRATION_PICTURES, len(rows)), device))


def end_step(codec: Codec, faulty: bool) -> None:
    """Takes what the step's micro-batches showed, over all ranks, into the ranges; nothing of a faulty step."""
    quantization = codec.architecture.quantization
    if quantization is None or not quantization.learns_ranges:
        return
    if faulty:
        forget_batches(codec)
    else:
        learn_ranges(codec, reduce_over_ranks)


def announcement(codec: Codec, qat: QatOptions, amp: bool) -> list[str]:
    """What a run says of its quantization at its start."""
    activations = sum(1 for _ in activation_quantizers(codec))
    weights = "a scale for each output channel" if qat.qat_w_per_channel else "one scale a layer"
    closed = closed_layers(codec)
    parts = TRANSFORMS[qat.qat_scope]
    in_float = [name for name, _ in gdn_layers(codec) if name.startswith(parts)]
    lines = [
        f"{' and '.join(parts)} in int8: {activations} tensors, weights with {weights}; calibration for "
        f"{qat.qat_calib_steps} steps, fixed scale to step {qat.qat_freeze_after}, then eval-ready"
    ]
    if in_float:
        lines.append(f"{', '.join(in_float)} (GDN) stay in float, between quantized tensors")
    if closed:
        lines.append(
            f"{', '.join(closed)} cannot be traced: quantized before and after, and around each convolution inside"
        )
    if not qat.qat_exclude_entropy:
        lines.append("this entropy model has no h_a, no h_s and no other layer to quantize: tables stay on the host")
    if amp:
        lines.append("warning: --amp true rounds what is quantized a second time; --amp false is the default with QAT")
    return lines


def latent_in_float(shipped: Codec) -> str | None:
    """Why a quantized codec's y stays in float; None where it does not, or nothing is quantized."""
    quantization, bottleneck = shipped.architecture.quantization, shipped.entropy_bottleneck
    if quantization is None or not quantization.phase.fake_quantizes or bottleneck.symbols_fit(*INT8):
        return None
    low, high = bottleneck.symbol_range()
    return f"y stays in float: the tables' symbols are {low}..{high}, beyond {INT8[0]}..{INT8[1]}"
