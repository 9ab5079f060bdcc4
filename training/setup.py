"""Builds everything that the training loop uses, from the options. Options that cannot work are refused here."""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.amp.grad_scaler import GradScaler

from coco224.batches import TrainBatches
from coco224.dataset import Rows
from codec.evaluation.ranks import check_agreement, drop_empty_variables
from codec.network.codec import Codec
from codec.quantization.phases import build
from training.agreement import facts
from training.compiling import check_compile, check_dynamo, compile_all
from training.data import TrainingData, batches_of, open_splits
from training.distributed import check_launch, check_precision, is_sharded, keep_buffers, make_accelerator
from training.faults import Watch
from training.folder import check_outputs, check_states
from training.hardware import prepare_gpu
from training.memory import keep_freed_memory
from training.micro_batches import DrawnBatches, micro_batches
from training.optim import clipped_together, make_optimizer
from training.options import Options
from training.phases import check_phases
from training.precision import fit_to_gpu, memory_format
from training.resume import DataIdentity, accumulation_for, checksums, find_origin, fresh_progress, saved_state
from training.run import Run
from training.start import check_start, starting_codec
from training.state import Saved, load_optimizer_tensors
from training.uploads import check_hub


def set_up(options: Options, accelerator: Accelerator | None = None) -> Run:
    """Builds a run, from its saved state if it resumes. The order matters: cheap checks come first.

    Args:
        accelerator: the result of `launch` for these options; None: it is called here.

    Raises:
        InputError, DataError: the options, the data, the checkpoint or the launch cannot work.
    """
    accelerator = accelerator or launch(options)
    numerics = fit_to_gpu(options.numerics, "amp_dtype" in options.typed, accelerator.device)
    if numerics != options.numerics:
        accelerator.print("warning     this GPU has no bf16: the run takes fp16 (--amp_dtype fp16)", file=sys.stderr)
        options = replace(options, numerics=numerics)
    origin = find_origin(options, accelerator)
    if origin.state is None:
        check_start(options)
    rows, validation = open_splits(options.data)
    fingerprints = [None if split is None else split.fingerprint for split in (rows, validation)]
    data_facts = dict(zip(("the dataset", "the validation split"), fingerprints, strict=True))
    check_agreement(data_facts, accelerator.num_processes)
    identity = DataIdentity(rows.fingerprint, validation.fingerprint if validation else "")
    saved = saved_state(origin, options, identity)
    progress = saved.progress if saved else fresh_progress(options, identity, origin.run)

    # Data and length: the order of the data is a function of the seed and the step.
    data = TrainingData(rows, validation, _batches(rows, options, saved, accelerator), _on_the_hub(options))
    progress.global_batch = data.batches.global_batch
    total = _total(options, data.batches.steps_per_epoch, accelerator)
    saves = (options.output.checkpoint_every, data.batches.steps_per_epoch)
    to_do, run = range(progress.step + 1, total + 1), origin.run if origin.in_place else ""
    check_states(Path(options.output.save_dir), run, to_do, saves, accelerator)

    # The codec: its weights, its blocks, its quantization.
    set_seed(numerics.seed)
    decisive = partial(facts, options, progress.files)
    start = starting_codec(options, rows, saved, accelerator, decisive)
    progress.architecture = asdict(replace(start.codec.architecture, quantization=None))
    eval_codec: Codec = build(start.codec.architecture).eval().requires_grad_(False)
    eval_codec.to(accelerator.device, memory_format=memory_format(numerics))
    loss = compile_all(start.codec, eval_codec, options.loss, options, accelerator)

    # The optimizer. FSDP replaces its parameters, so codec and optimizer are prepared together.
    schedule = options.schedule.over(total)
    model, prepared = accelerator.prepare(start.codec, _optimizer(start.codec, options))
    keep_buffers(model)
    optimizer = prepared.optimizer
    scaler = GradScaler(accelerator.device.type, enabled=numerics.amp and numerics.amp_dtype == "fp16")
    if saved:
        load_optimizer_tensors(start.codec, optimizer, saved.optimizer)
        schedule.plateau.update(progress.plateau)
        if progress.scaler:  # a run in bf16 has none
            scaler.load_state_dict(progress.scaler)
    return Run(
        options=options,
        accelerator=accelerator,
        data=data,
        progress=progress,
        total=total,
        codec=start.codec,
        model=model,
        eval_codec=eval_codec,
        objective=options.loss,
        loss=loss,
        optimizer=optimizer,
        clipped=clipped_together(start.codec, apart=options.loss.detaches_rate),
        schedule=schedule,
        scaler=scaler,
        watch=Watch(numerics.overflow_tol, accelerator.device, numerics.overflow_check),
        micro_batches=micro_batches(
            DrawnBatches(data.batches, numerics.seed, start.codec.architecture.rates),
            rows.decodes,
            options.data.num_workers,
            progress.step,
            total,
            accelerator.device,
        ),
        fp32_modules=start.fp32_modules,
        distilled=start.distilled,
        in_place=origin.in_place,
    )


def launch(options: Options) -> Accelerator:
    """The Accelerator of this launch.

    Raises:
        InputError: the launch contradicts the options, the processes differ, an output folder cannot be written,
            --compile true cannot work, or this token may not upload to the Hub.
    """
    numerics = options.numerics
    drop_empty_variables()
    check_precision(numerics.amp_dtype if numerics.amp else None)
    check_dynamo(numerics.compile)
    accelerator = make_accelerator(options.reporting, options.output.save_dir, options.launch.ddp_timeout)
    check_launch(accelerator)
    if numerics.compile:
        check_compile(accelerator)
    if accelerator.num_processes > 1:  # the facts are checksums of files
        check_agreement(facts(options, checksums(options)), accelerator.num_processes)
    check_outputs(options.output, accelerator)
    if options.reporting.push_to_hub:
        check_hub(options.reporting, accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.device.type == "cuda":
        prepare_gpu(numerics.deterministic)
    return accelerator


def _batches(rows: Rows, options: Options, saved: Saved | None, accelerator: Accelerator) -> TrainBatches:
    """This rank's batches; a resumed run keeps its global batch on any number of ranks."""
    grad_accum, world_size = options.data.grad_accum, accelerator.num_processes
    if saved:
        grad_accum = accumulation_for(saved.progress.global_batch, options.data.batch_size, world_size)
    return batches_of(rows, options.data, options.numerics.seed, grad_accum, accelerator.process_index, world_size)


def _on_the_hub(options: Options) -> str:
    """The dataset's name on the Hub; empty if it is a folder of this machine."""
    return options.data.coco_dir if options.data.on_the_hub() else ""


def _total(options: Options, steps_per_epoch: int, accelerator: Accelerator) -> int:
    """Optimizer steps of the complete run.

    Raises:
        InputError: quantization-aware training under FSDP, or one of its phases begins after the run ends.
    """
    total = options.schedule.epochs * steps_per_epoch
    total = min(total, options.schedule.max_steps or total)
    if options.qat.qat:
        check_phases(options.qat, total, is_sharded(accelerator))
    return total


def _optimizer(codec: Codec, options: Options) -> torch.optim.Optimizer:
    schedule = options.schedule
    return make_optimizer(
        codec, schedule.optimizer, schedule.lr, schedule.weight_decay, options.entropy_model.eb_aux_lr
    )
