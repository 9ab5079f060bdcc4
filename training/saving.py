"""Saving a run: the state to resume from, and `last.safetensors` for everyone else."""

from pathlib import Path

from codec.checkpoint import Description, save_codec
from codec.entropy import with_tables
from training.setup import Run
from training.state import model_tensors, optimizer_tensors, save_state


def save(run: Run) -> None:
    """Writes both. Called by every rank, since a sharded model is gathered here; the main process writes."""
    progress, output = run.progress, run.options.output
    progress.plateau, progress.scaler = run.schedule.plateau, run.scaler.state_dict()
    model, optimizer = model_tensors(run.codec), optimizer_tensors(run.codec, run.optimizer)
    codec = with_tables(run.replica())
    if run.accelerator.is_main_process:
        folder = Path(output.save_dir)
        save_state(folder / "state", output.keep_checkpoints, model, optimizer, progress)
        save_codec(folder / "last.safetensors", codec, describe(run, run.last_metrics))
    run.accelerator.wait_for_everyone()


def describe(run: Run, metrics: dict[str, float]) -> Description:
    """What a checkpoint of this run says of itself."""
    return Description(options=run.options.flat(), metrics=metrics, step=run.progress.step)
