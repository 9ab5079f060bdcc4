"""Quantization-aware training in a run: starts its phases, and learns ranges over all ranks."""

import itertools

import torch
from torch import Tensor, fx, nn

from coco224.dataset import Rows
from coco224.errors import counted
from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.network.codec import Codec, gdn_layers
from codec.quantization.layers import FACTORS
from codec.quantization.levels import levels_of, set_steps
from codec.quantization.phases import (
    activation_quantizers,
    closed_layers,
    enter,
    learn_ranges,
    prepare,
    quantization_of,
    quantizer_state,
    wide_activations,
)
from training.data import DataOptions, first_batches
from training.distributed import reduce_over_ranks, sum_over_ranks
from training.phases import QatOptions, phase_of

MANY_CLAMPED = 1e-5
"""Share of the symbols of y, or of its levels, that may be clamped without a warning."""


def check_regions(codec: Codec, fp32_modules: list[str]) -> None:
    """Refuses local FP32 for a block that is traced into the quantized graph and is no module there.

    Raises:
        InputError: names the region.
    """
    for name in fp32_modules:
        part, _, inside = name.partition(".")
        transform = codec.get_submodule(part)
        if inside and isinstance(transform, fx.GraphModule) and all(n.target != inside for n in transform.graph.nodes):
            raise InputError(
                f"--local_fp32 would keep {name} in FP32, but with --qat true that block is not a separate module; use "
                "--amp false, which is recommended with QAT, or --local_fp32 entropy or entropy+decoder"
            )


def quantize(codec: Codec, qat: QatOptions, initial: Codec | None) -> None:
    """Inserts quantizers into a codec for the run, in place. They start from the ranges of the initial codec, if any.

    Args:
        initial: the codec that the run starts from; None for a resumed run, whose state has the ranges.

    Raises:
        InputError: no step would learn ranges, and the initial codec has none; or a glob of --qat_a16 matches nothing.
    """
    prepare(
        codec,
        Quantization(
            scope=qat.qat_scope,
            act_observer=qat.qat_act_observer,
            w_per_channel=qat.qat_w_per_channel,
            eval_fakequant=qat.qat_eval_fakequant,
            hyper=quantizes_h_a(codec, qat),
            a16=qat.qat_a16 or "",
        ),
    )
    if initial is None:
        return
    earlier = initial.state_dict()
    own = codec.state_dict()
    ranges = {
        key: earlier[key]
        for key in quantizer_state(codec)
        if key in earlier
        and earlier[key].shape == own[key].shape
        and not key.endswith((".steps", "levels.step", "levels.splits", *FACTORS))
    }
    nn.Module.load_state_dict(codec, ranges, strict=False)
    for _, levels in itertools.islice(levels_of(initial), 1):
        set_steps(codec, levels.step, levels.splits)
    if 0 in (qat.qat_calib_steps, qat.qat_disable_observer_step):
        unknown = [name for name, quantizer in activation_quantizers(codec) if not quantizer.has_range]
        if unknown:
            raise InputError(
                f"--qat_calib_steps {qat.qat_calib_steps} --qat_disable_observer_step {qat.qat_disable_observer_step}: "
                f"no step learns ranges, and {unknown[0]} has none; use more calibration steps, or start from a "
                "checkpoint of a run with the same --qat_scope"
            )


def quantizes_h_a(codec: Codec, qat: QatOptions) -> bool:
    """Whether the run quantizes h_a: it belongs to the encoder."""
    return not qat.qat_exclude_entropy and qat.qat_scope != "decoder" and "h_a" in codec.entropy_models


def enter_phase(codec: Codec, qat: QatOptions, step: int) -> None:
    """Switches a quantized codec to the phase of the next optimizer step (0-based)."""
    if qat.qat:
        enter(codec, phase_of(qat, step), learning=not 0 <= qat.qat_disable_observer_step <= step)


def calibration_pictures(rows: Rows, data: DataOptions, seed: int, device: torch.device, most: int) -> list[Tensor]:
    """The first pictures of the run, at most so many, each [1, 3, H, W] in [0, 1]."""
    return list(first_batches(rows, data, seed, 1, min(most, len(rows)), device))


def end_step(codec: Codec, fault: Tensor) -> None:
    """Updates the ranges of a quantized codec from the step's micro-batches on all ranks; ignores a faulty step.

    Args:
        fault: 0 or 1, 0-dim on the device.
    """
    quantization = codec.architecture.quantization
    if quantization is not None and quantization.learns_ranges:
        learn_ranges(codec, reduce_over_ranks, fault > 0)


def announcement(codec: Codec, qat: QatOptions, amp: bool) -> list[str]:
    """The lines about quantization that a run prints at its start."""
    activations = sum(1 for _ in activation_quantizers(codec))
    weights = "one scale per output channel" if qat.qat_w_per_channel else "one scale per layer"
    closed = closed_layers(codec)
    parts = quantization_of(codec).transforms
    in_float = [name for name, _ in gdn_layers(codec) if name.startswith(parts)]
    lines = [
        f"{' and '.join(parts)} in int8: {counted(activations, 'tensor')}, weights with {weights}; calibration for "
        f"{counted(qat.qat_calib_steps, 'step')}, fixed scale to step {qat.qat_freeze_after}, then eval-ready"
    ]
    if wide := wide_activations(codec, *parts):
        lines.append(f"{', '.join(wide)} in 16 bits")
    if in_float:
        lines.append(f"{', '.join(in_float)} (GDN) stay in float, between quantized tensors")
    if closed:
        reasons = dict.fromkeys(reason for part in parts for reason in getattr(codec, part).closed.values())
        lines.append(
            f"{', '.join(closed)} cannot be traced: quantized at input and output, and around every convolution inside "
            f"({'; '.join(reasons)})"
        )
    if not qat.qat_exclude_entropy and "h_a" not in parts:
        lines.append(
            "h_a stays in float: it belongs to the encoder, which --qat_scope decoder leaves out"
            if "h_a" in codec.entropy_models
            else f"--qat_exclude_entropy false has no effect: {codec.arch} has no h_a"
        )
    if amp:
        lines.append("warning: --amp true rounds quantized values a second time; --amp false is the default with QAT")
    return lines


def forget_clamped(codec: Codec) -> None:
    """Counts clamped symbols and levels from here on."""
    codec.y_model.clamped.zero_()
    for _, levels in levels_of(codec):
        levels.clamped.zero_()


def about_latent(shipped: Codec) -> list[str]:
    """What to know about y of a quantized codec after an evaluation; a collective call if y is int8.

    It says why y stays in float, or which share of the symbols or levels 8 bits do not hold, if it is large.
    """
    quantization, model = shipped.architecture.quantization, shipped.y_model
    if quantization is None or not quantization.phase.fake_quantizes:
        return []
    if reason := model.not_int8():
        return [f"y stays in float: {reason}"]
    lines = []
    if many := _many_clamped(model.clamped):
        lines.append(
            f"warning: {many} symbols of y do not fit -128..127 and are clamped; a smaller --lambda_mse, or a "
            "larger --lambda_bpp, makes them smaller"
        )
    for part, levels in levels_of(shipped):
        # h_a takes the levels that g_a gives
        if part != "h_a" and (many := _many_clamped(levels.clamped)):
            lines.append(
                f"warning: {many} levels of {'y' if part == 'g_a' else 'y_hat'} do not fit 8 bits and are "
                "clamped, because they are larger than in the pictures from which their steps were chosen: start a run "
                "from this checkpoint (--init_checkpoint), which chooses the steps again"
            )
    return lines


def _many_clamped(counts: Tensor) -> str:
    """The numbers of a `clamped`, over all ranks, if they are many; else nothing."""
    clamped, total = map(int, sum_over_ranks(counts.clone()))
    return f"{clamped:,} of {total:,}" if clamped > MANY_CLAMPED * total else ""
