"""Saving a run: the state to resume from, and `last.safetensors` and the `best_*` files for everyone else."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from coco224.files import link_or_copy, whole_or_absent
from codec.checkpoint import Description, as_file
from codec.errors import InputError
from codec.network.codec import Codec
from training.distributed import sum_over_ranks
from training.folder import STATE, Marker, mark
from training.record import LAST, Record
from training.run import Run
from training.state import model_tensors, optimizer_tensors, save_state

# The metric that each best_* file keeps, and whether more of it is better.
BEST = {"psnr": ("best_psnr", True), "ms_ssim": ("best_msssim", True), "rd": ("best_rd", False)}


def save(run: Run, record: Record, shipped: Codec, *, ends_run: bool = False) -> None:
    """Takes all that is saved into host memory and hands it to the main process's writer; training goes on meanwhile.

    Called by every rank, since a sharded model is gathered here. `shipped` is `run.shipped()` of these weights. A full
    disk leaves the state before this one whole, and training goes on without this one. Only a run that ends here waits
    for the disk, and with `--full_disk stop` every save.

    Raises:
        InputError: on every rank, where the disk is full and the run cannot or shall not go on.
    """
    progress, output, main = run.progress, run.options.output, run.accelerator.is_main_process
    progress.plateau, progress.scaler = dict(run.schedule.plateau), run.scaler.state_dict()
    model, optimizer = model_tensors(run.codec), optimizer_tensors(run.codec, run.optimizer)
    written = True
    if main:
        contents = as_file(shipped, describe(run, run.last_metrics))
        quantization = run.codec.architecture.quantization
        calibrates = quantization is not None and not quantization.phase.fake_quantizes
        figures = {} if calibrates else run.last_metrics  # a best file shall be one that is quantized
        here = replace(progress)  # of what changes in place, `best`, the writer takes care
        folder = Path(output.save_dir)

        def write() -> bool:
            with record.unless_full(f"the checkpoint of step {here.step}"):
                # The state last: a kill before it repeats the steps and writes all of it again.
                write_last(folder, contents)
                keep_best(folder, figures, progress.best, record)
                save_state(folder / STATE, output.keep_checkpoints, model, optimizer, here)
                mark(folder, Marker(here.run, saved=True))
                record.checkpoint(here.step, ends_run)
                return True
            return False

        job = record.writer.submit(write)
    if not ends_run and output.full_disk == "continue":
        return
    if main:
        record.writer.wait()
        written = job.result()
    (failed,) = sum_over_ranks(torch.tensor([float(not written)], device=run.device))
    if failed:
        raise InputError(
            f"the disk of --save_dir {output.save_dir} is full at step {progress.step}; the state before is whole: "
            "make room, and the same command goes on from there"
        )


def write_last(folder: Path, contents: bytes) -> None:
    """Writes `last.safetensors`, whole or not at all."""
    with whole_or_absent(folder / LAST) as beside:
        beside.write_bytes(contents)


def keep_best(folder: Path, figures: dict[str, float], best: dict[str, float], record: Record) -> None:
    """Makes `last.safetensors` the `best_*` file of each metric that it betters, and notes that in `best`.

    Args:
        figures: of its evaluation; a figure that is not finite betters nothing.
    """
    for metric, (name, more_is_better) in BEST.items():
        value, before = figures.get(metric, math.nan), best.get(metric)
        if not math.isfinite(value):
            continue
        if before is None or (value > before if more_is_better else value < before):
            file = f"{name}.safetensors"
            with record.unless_full(file):
                link_or_copy(folder / LAST, folder / file)
                best[metric] = value


def describe(run: Run, metrics: dict[str, float]) -> Description:
    """What a checkpoint of this run says of itself."""
    return Description(run.options.flat(), metrics, run.progress.step, dataset=run.data.on_the_hub)
