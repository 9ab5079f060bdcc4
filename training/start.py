"""The codec that a run starts from: its first weights, its blocks, the parts that train, and its quantization."""

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from coco224.dataset import Rows
from coco224.errors import counted
from codec.blocks import options_dict
from codec.description.architecture import TRANSFORMS, Architecture, BlockChoice
from codec.description.fingerprint import fingerprint
from codec.description.typed import from_json
from codec.errors import InputError, no_file
from codec.network.architectures import new_codec
from codec.network.arrays import as_arrays
from codec.network.codec import Codec
from codec.quantization.calibrate import CALIBRATION_PICTURES, equalize_channels
from codec.quantization.phases import in_float
from codec.sample import to_start_from
from training.data import first_batches
from training.distill import FIT_BATCHES, distill
from training.distributed import broadcast_parameters, is_sharded
from training.fitted import FittedBlocks
from training.initial import initial_codec, random_architecture
from training.klt import PICTURES, klt_start
from training.options import Options
from training.precision import apply_local_fp32, memory_format
from training.qat import calibration_pictures, check_regions, enter_phase, quantize
from training.scope import set_trainable, trainable_modules
from training.state import Saved

_LAMBDA = 0.0130
"""The lambda of a KLT start for losses that have none of lambda 255^2 MSE + bpp; CompressAI's for quality 4."""


Facts = Callable[[], Mapping[str, Any]]
"""Gives values by name. It reads files, so it is called only where they are needed."""


@dataclass(frozen=True)
class Start:
    """A codec that is ready to train, on its device.

    Attributes:
        fp32_modules: names of the regions of local FP32.
        distilled: how well each block follows its GDN after a distilled start, in dB; empty without one.
    """

    codec: Codec
    fp32_modules: list[str]
    distilled: dict[str, float]


def starting_codec(
    options: Options, rows: Rows, saved: Saved | None, accelerator: Accelerator, decisive: Facts
) -> Start:
    """The codec at the step at which the run starts.

    Args:
        rows: the rows for a distilled start and for cross-layer equalization.
        saved: the state that the run resumes from; None for a new run.
        decisive: gives what decides the start besides the weights and the rows, by name.

    Raises:
        InputError: the checkpoint, the blocks or the regions of local FP32 cannot work.
    """
    numerics, replacement, qat = options.numerics, options.replacement, options.qat
    if saved and saved.progress.architecture:  # the first weights and their file are not needed any more
        initial = codec = new_codec(from_json(Architecture, saved.progress.architecture, "architecture")).train()
        distilled = {}
    else:
        initial = initial_codec(options.model)
        codec = in_float(initial)
        codec.forget_tables()  # a saved state has none either, and rounding to 8 bits depends on them
        add_rates(codec, options)
        distilled = replace_blocks(codec, options, None if saved else rows, accelerator, decisive)
        if options.model.klt_start and not saved:
            from_klt(codec, options, rows, accelerator)
    set_trainable(
        codec,
        trainable_modules(codec, replacement.replace_parts, replacement.train_scope),
        train_quantiles=options.entropy_model.eb_aux,
    )
    if qat.qat:
        quantize(codec, qat, None if saved else initial)
    globs = tuple((numerics.local_fp32_custom or "").split(","))
    fp32_modules = apply_local_fp32(codec, numerics.local_fp32, globs) if numerics.amp else []
    if saved:
        codec.load_weights(saved.model)
    # The phase of the last step: an evaluation that a kill prevented is repeated in it. The next step enters its own.
    enter_phase(codec, qat, max(0, saved.progress.step - 1) if saved else 0)
    if qat.qat and numerics.amp:
        check_regions(codec, fp32_modules)
    codec = codec.to(accelerator.device)
    if not is_sharded(accelerator):  # FSDP supports only contiguous parameters
        codec = codec.to(memory_format=memory_format(numerics))
    if qat.qat and not saved:
        of_run = rows, options.data, numerics.seed, accelerator.device
        equalize_channels(codec, calibration_pictures(*of_run, CALIBRATION_PICTURES))
        broadcast_parameters(codec)
    return Start(codec, fp32_modules, distilled)


def add_rates(codec: Codec, options: Options) -> None:
    """Makes it a codec of --rates, in place, unless it is one; the gains begin as a uniform quantizer needs them.

    There the squared error is proportional to the square of a symbol's width, and lambda to its inverse.

    Raises:
        InputError: the codec's rates and the lambdas contradict each other.
    """
    low, high = options.loss.ends
    if options.model.rates and options.model.rates > codec.architecture.rates:
        codec.add_rates(options.model.rates, math.log2(high / low) / 2)
    several = codec.architecture.rates > 1
    if several and not options.loss.terms.rate:
        raise InputError(
            f"--loss_type {options.loss.loss_type} has no rate, and the checkpoint has several: "
            "use --loss_type rd or mse"
        )
    if several != (low < high):
        needed = "the lambdas of the lowest and of the highest rate, LOW:HIGH" if several else "one lambda"
        has = counted(codec.architecture.rates, "rate")
        raise InputError(f"--init_checkpoint {options.model.init_checkpoint} has {has}: give {needed}")


def from_klt(codec: Codec, options: Options, rows: Rows, accelerator: Accelerator) -> None:
    """The KLT start, in place; with several rates it is made for the highest."""
    count = -(-PICTURES // options.data.batch_size)
    data, loss, device = options.data, options.loss, accelerator.device
    batches = list(first_batches(rows, data, options.numerics.seed, data.batch_size, count, device))
    psnr = klt_start(codec.to(device), batches, loss.ends[1] if loss.terms.weighted == "mse" else _LAMBDA)
    accelerator.print(f"KLT start   {psnr:.2f} dB before the first step", file=sys.stderr)
    broadcast_parameters(codec)


def check_start(options: Options) -> None:
    """Refuses missing checkpoints, blocks that cannot be built and unknown activations before the data is opened.

    Raises:
        InputError: names the file, the block or the activation.
    """
    model, replacement = options.model, options.replacement
    if model.init_checkpoint:  # it decides how many channels the blocks have
        file = to_start_from(model.init_checkpoint)
        if not file.is_file():
            raise InputError(f"--init_checkpoint {model.init_checkpoint}: {no_file(file)}; name a checkpoint")
    elif replacement.plugin:
        put_blocks(new_codec(random_architecture(model)), options)
    if options.qat.qat_a16:  # the names of the activations depend on the blocks
        codec = in_float(initial_codec(model))
        put_blocks(codec, options)
        quantize(codec, options.qat, None)


def put_blocks(codec: Codec, options: Options) -> None:
    """Replaces GDN by the blocks."""
    replacement = options.replacement
    choice = BlockChoice(replacement.act, options_dict(replacement.act, options.block))
    for part in TRANSFORMS[replacement.replace_parts]:
        codec.replace_blocks(part, choice)


def replace_blocks(
    codec: Codec, options: Options, rows: Rows | None, accelerator: Accelerator, decisive: Facts
) -> dict[str, float]:
    """Replaces GDN by the blocks, with a distilled start on `rows` if --distill_steps is above 0.

    A start that was stopped goes on, if the same decides it.

    Returns:
        The result of `distill`; empty without a distilled start.
    """
    replacement = options.replacement
    teacher = copy.deepcopy(codec)
    put_blocks(codec, options)
    codec.train()
    if not replacement.distill_steps or rows is None:
        return {}
    device = accelerator.device
    weights = {"teacher": teacher, "codec": codec}
    sums = {name: fingerprint(as_arrays(each.state_dict()), {}) for name, each in weights.items()}
    of_fit = {**decisive(), "the dataset": rows.fingerprint, **sums}
    fitted = FittedBlocks(Path(options.output.save_dir), of_fit, accelerator.is_main_process)
    batches = first_batches(rows, options.data, options.numerics.seed, options.data.batch_size, FIT_BATCHES + 1, device)
    bar = tqdm(batches, "distilled start", FIT_BATCHES + 1, unit="batch", disable=not accelerator.is_main_process)
    with bar as pictures:  # else an error is printed behind the bar
        result = distill(codec.to(device), teacher.to(device), pictures, replacement.distill_steps, fitted)
    broadcast_parameters(codec)
    return result
