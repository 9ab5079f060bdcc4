"""What a run goes on from: the state that fits its options, or a fresh start that loses nothing."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from codec.errors import InputError
from training.options import Options
from training.state import Progress, Saved, load_state, newest_whole

# What a run writes into its save_dir.
RUN_FILES = (
    "state",
    "last.safetensors",
    "best_*.safetensors",
    "config.yaml",
    "metrics.jsonl",
    "curves.png",
    "summary.json",
)


def saved_state(options: Options, data: str, accelerator: Accelerator) -> Saved | None:
    """The state to resume from; None for a new run.

    Args:
        data: the fingerprint of this dataset.

    Raises:
        InputError: the saved run differs from this one or is damaged, or `--resume none` would mix two runs.
    """
    output = options.output
    found: Path | None = None
    if output.resume == "none":
        if earlier_files(Path(output.save_dir)) and not output.overwrite:
            raise InputError(
                f"--save_dir {output.save_dir} holds a run; resume it with --resume auto, choose another --save_dir, "
                "or start over with --resume none --overwrite true"
            )
    elif output.resume == "auto":
        found = newest_whole(Path(output.save_dir) / "state")
    else:
        found = newest_whole(Path(output.resume))
        if found is None:
            raise InputError(f"--resume {output.resume}: no state of a run there; give the folder state/ of a run")
    path = broadcast_object_list([found])[0]  # the main process's view of the disk is everyone's
    if path is None:
        return None
    saved = load_state(path)
    require_agreement(saved.progress, options, data)
    saved.progress.options = options.flat()
    return saved


def fresh_progress(options: Options, data: str) -> Progress:
    """The progress of a new run on the dataset with this fingerprint."""
    return Progress(options=options.flat(), data=data)


def earlier_files(folder: Path) -> list[Path]:
    """What an earlier run left in a `save_dir`."""
    return [path for name in RUN_FILES for path in folder.glob(name)]


def make_room(folder: Path, accelerator: Accelerator) -> None:
    """Removes an earlier run's files for a new run that is ready to start."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in earlier_files(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_agreement(saved: Progress, options: Options, data: str) -> None:
    """Refuses to continue a run with other settings.

    Args:
        options: of this command.
        data: this dataset's fingerprint.

    Raises:
        InputError: naming each difference.
    """
    differences = [
        f"--{name} {_text(saved.options.get(name))} there, {_text(value)} here"
        for name, value in options.deciding().items()
        if saved.options.get(name) != value
    ]
    if saved.data != data:
        differences.append("another dataset")
    if differences:
        raise InputError(
            f"--save_dir {options.output.save_dir} holds a run that differs: {'; '.join(differences)}; give the same "
            "options to resume it, another --save_dir, or --resume none --overwrite true to start over"
        )


def accumulation_for(global_batch: int, batch_size: int, world_size: int) -> int:
    """The accumulation that keeps the global batch on this number of ranks.

    Raises:
        InputError: it is not a whole number.
    """
    if global_batch % (batch_size * world_size):
        divisors = [b for b in range(1, global_batch + 1) if global_batch % (b * world_size) == 0]
        raise InputError(
            f"the run has {global_batch} pictures an optimizer step, which {world_size} processes of --batch_size "
            f"{batch_size} cannot make with a whole number of micro-batches; use --batch_size "
            + (", ".join(map(str, divisors)) if divisors else "with another number of processes")
        )
    return global_batch // (batch_size * world_size)


def _text(value: Any) -> str:
    return "absent" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
