"""Saving a run: the state to resume from, `last.safetensors`, and the `best_*` files."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from coco224.files import link_or_copy, whole_or_absent
from codec.checkpoint import Description, as_file
from codec.errors import InputError
from codec.network.codec import Codec
from training.distributed import is_sharded, sum_over_ranks
from training.fitted import forget_fitted
from training.folder import STATE, Marker, begin_saving, mark
from training.phases import begins_phase
from training.preempt import Preempted, Stopped, StopSignal
from training.record import LAST, Record
from training.run import Run
from training.state import model_tensors, optimizer_tensors, save_state

# The metric of each best_* file, and whether a higher value is better.
BEST = {"psnr": ("best_psnr", True), "ms_ssim": ("best_msssim", True), "rd": ("best_rd", False)}


def save(run: Run, record: Record, shipped: Codec, *, ends_run: bool = False, waits: bool = False) -> bool:
    """Copies everything to host memory and gives it to the main process's writer; training continues meanwhile.

    Every rank calls it, since a sharded model is gathered here. `shipped` is `run.shipped()` of these weights. If the
    disk is full, the previous state stays intact, and training continues without this one. The run waits for the disk
    only at its end, with `waits`, and at every save with `--full_disk stop`.

    Returns:
        False if the run waited and the disk is full.

    Raises:
        InputError: on every rank, if the disk is full and the run ends here or has `--full_disk stop`.
    """
    progress, output, main = run.progress, run.options.output, run.accelerator.is_main_process
    progress.plateau, progress.scaler = dict(run.schedule.plateau), run.scaler.state_dict()
    written = True
    if main or is_sharded(run.accelerator):
        model, optimizer = model_tensors(run.codec), optimizer_tensors(run.codec, run.optimizer)
    if main:
        contents = as_file(shipped, describe(run, run.last_metrics))
        quantization = run.codec.architecture.quantization
        calibrates = quantization is not None and not quantization.phase.fake_quantizes
        figures = {} if calibrates else run.last_metrics  # a best_* file must be quantized
        here = replace(progress)  # a shallow copy: only the writer changes `best`
        folder = Path(output.save_dir)

        def write() -> bool:
            with record.unless_full(f"the checkpoint of step {here.step}"):
                # The state comes last: after a kill before it, the resumed run repeats the steps and writes all again.
                begin_saving(folder, here.run)
                write_last(folder, contents)
                keep_best(folder, figures, progress.best, record)
                save_state(folder / STATE, output.keep_checkpoints, model, optimizer, here)
                mark(folder, Marker(here.run, saved=True, saving=True))
                forget_fitted(folder)
                record.checkpoint(here.step, ends_run)
                return True
            return False

        job = record.writer.submit(write)
    must = ends_run or output.full_disk == "stop"
    if not must and not waits:
        return True
    if main:
        record.writer.wait()
        written = job.result()
    (failed,) = sum_over_ranks(torch.tensor([float(not written)], device=run.device))
    if failed and must:
        raise InputError(
            f"the disk of --save_dir {output.save_dir} is full at step {progress.step}; the previous state is intact: "
            "make room, and the same command continues from there"
        )
    return not failed


@contextlib.contextmanager
def interruptible_compilation(run: Run, record: Record, stop: StopSignal) -> Iterator[None]:
    """Around a step: if it compiles a phase of QAT, which can take a minute, saves first, and signals stop it at once.

    With several processes a signal waits for the step, since the others would wait for this one.

    Raises:
        Stopped: a signal came, and the state before this step is saved.
    """
    compiled, alone = run.loss is not run.objective, run.accelerator.num_processes == 1
    takes_long = compiled and alone and begins_phase(run.options.qat, run.progress.step)
    saved = takes_long and save(run, record, run.shipped(), waits=True)
    try:
        with stop.at_once() if saved else contextlib.nullcontext():
            yield
    except Preempted:
        if saved:
            raise Stopped from None
        raise


def write_last(folder: Path, contents: bytes) -> None:
    """Writes `last.safetensors`, completely or not at all."""
    with whole_or_absent(folder / LAST) as beside:
        beside.write_bytes(contents)


def keep_best(folder: Path, figures: dict[str, float], best: dict[str, float], record: Record) -> None:
    """Copies `last.safetensors` to the `best_*` file of every metric that has improved, and updates `best`.

    Args:
        figures: the figures of its evaluation; a figure that is not finite is never the best.
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
    """The description in a checkpoint of this run, without figures that are not finite."""
    finite = {name: figure for name, figure in metrics.items() if math.isfinite(figure)}
    return Description(run.options.flat(), finite, run.progress.step, dataset=run.data.on_the_hub)
