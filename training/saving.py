"""Saving a run: the state to resume from, and `last.safetensors` for everyone else."""

from pathlib import Path

import torch

from codec.checkpoint import Description, save_codec
from codec.errors import InputError
from codec.model import Codec
from training.distributed import sum_over_ranks
from training.record import LAST, Record
from training.setup import Run
from training.state import model_tensors, optimizer_tensors, save_state


def save(run: Run, record: Record, shipped: Codec, *, ends_run: bool = False) -> None:
    """Writes both. Called by every rank, since a sharded model is gathered here; the main process writes.

    `shipped` is `run.shipped()` of these weights. A full disk leaves the state before this one whole. Training goes on
    without this one, unless the run ends here or `--full_disk stop` says otherwise.

    Raises:
        InputError: on every rank, where the disk is full and the run cannot or shall not go on.
    """
    progress, output = run.progress, run.options.output
    progress.plateau, progress.scaler = run.schedule.plateau, run.scaler.state_dict()
    model, optimizer = model_tensors(run.codec), optimizer_tensors(run.codec, run.optimizer)
    folder = Path(output.save_dir)
    written = not run.accelerator.is_main_process
    if run.accelerator.is_main_process:
        with record.unless_full(f"the checkpoint of step {progress.step}"):
            # The state last: a kill between the two repeats the steps and writes both again.
            save_codec(folder / LAST, shipped, describe(run, run.last_metrics))
            save_state(folder / "state", output.keep_checkpoints, model, optimizer, progress)
            written = True
            record.checkpoint(progress.step, ends_run)
    (failed,) = sum_over_ranks(torch.tensor([float(not written)], device=run.device))
    if failed and (ends_run or output.full_disk == "stop"):
        raise InputError(
            f"the disk of --save_dir {folder} is full at step {progress.step}; the state before is whole: make room, "
            "and the same command goes on from there"
        )


def describe(run: Run, metrics: dict[str, float]) -> Description:
    """What a checkpoint of this run says of itself."""
    return Description(run.options.flat(), metrics, run.progress.step, dataset=run.dataset)
