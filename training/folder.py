"""The folder of a run, --save_dir: marked as this program's, written by one run at a time. Other files there stay."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from coco224.errors import DataError
from coco224.files import (
    check_writable,
    lock,
    make_folder,
    open_regular,
    read_json,
    remove_empty,
    same_file,
    write_whole,
)
from codec.errors import InputError
from codec.hub.repository import CONFIG, MARK, MARKER, MARKER_FORMAT, RECONSTRUCTIONS, RESOLVED
from training.output import OutputOptions
from training.state import foreign_states, foreign_words, own_states, remove_folder

LOCK = ".lock"
STATE = "state"

# Files that a run writes into its folder besides its states.
RUN_FILES = (
    "last.safetensors",
    *("best_psnr.safetensors", "best_msssim.safetensors", "best_rd.safetensors"),
    CONFIG,
    "metrics.jsonl",
    "curves.png",
    "rd.png",
    RECONSTRUCTIONS,
    "summary.json",
    MARKER,
)
BEFORE_A_SAVE = (CONFIG, "metrics.jsonl", "curves.png", "rd.png", RECONSTRUCTIONS, MARKER)
"""Those of a run that has saved nothing."""
_LEFTOVER = re.compile(
    r"\.(last|best_\w+|metrics|curves|rd|reconstructions|summary|run|config|resolved)\.\w+(\..+)?\.partial"
)


@dataclass(frozen=True)
class Marker:
    """The content of run.json: the run that the folder belongs to.

    Attributes:
        id: identifies the run; its states have the same id.
        saved: the run has saved a state. False: the run ended before its first state.
        saving: it has begun to save, so that checkpoints in the folder are its own.
    """

    id: str
    saved: bool = False
    saving: bool = False


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder; None if it has none.

    Raises:
        InputError: run.json is damaged or not of this program.
    """
    path = folder / MARKER
    if not path.exists():
        return None
    try:
        values = read_json(path)
        if values.pop("format") == MARKER_FORMAT:
            return Marker(str(values["id"]), bool(values["saved"]), bool(values.get("saving", True)))
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise InputError(f"{path} is damaged or not a file of this program: choose another --save_dir, or remove it")


def mark(folder: Path, marker: Marker) -> None:
    """Writes the marker of the folder."""
    if read_marker(folder) != marker:
        write_whole(folder / MARKER, json.dumps({"format": MARKER_FORMAT, **asdict(marker)}, indent=1) + "\n")


def begin_saving(folder: Path, run: str) -> None:
    """Marks, before its first checkpoint, that the checkpoints in the folder are the run's."""
    marker = read_marker(folder)
    if marker is None or not marker.saving:
        mark(folder, Marker(run, saved=False, saving=True))


def new_id() -> str:
    """The id of a new run."""
    return secrets.token_hex(8)


def check_outputs(output: OutputOptions, accelerator: Accelerator) -> None:
    """Checks on the main process, which writes, that the output folders can be written. Leaves no files there.

    Raises:
        InputError: on every rank, if they cannot.
    """
    refusal = ""
    if accelerator.is_main_process:
        try:
            check_writable("--save_dir", Path(output.save_dir))
            if output.recon_every:
                check_writable("--recon_dir", Path(output.recon_dir))
        except DataError as error:
            refusal = str(error)
    _refuse_everywhere(refusal)


@contextlib.contextmanager
def hold(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Locks a folder against other runs. Creates it if necessary, and removes it again if nothing was written.

    Raises:
        InputError: on every rank, if another process holds the lock.
    """
    made: list[Path] = []
    held, refusal = None, ""
    if accelerator.is_main_process:
        made = make_folder(folder)
        try:
            held = lock(
                folder / LOCK,
                f"--save_dir {folder} is in use by another run: give another --save_dir, or wait",
            )
            os.register_at_fork(after_in_child=held.close)  # a reader process that survives a kill must not hold it
        except DataError as error:
            refusal = str(error)
    try:
        _refuse_everywhere(refusal)
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            held.close()
        remove_empty(made)


def check_free(output: OutputOptions, read: Mapping[str, Path]) -> None:
    """Refuses a new run in a folder whose files it would replace.

    A run that ended before its first state may be replaced, and files of other names stay. Checkpoints that it cannot
    have written are refused.

    Args:
        read: the files that the run is made of, by option.

    Raises:
        InputError: names the files.
    """
    folder = Path(output.save_dir)
    found = earlier_files(folder)
    if output.overwrite or not found:
        return
    marker = read_marker(folder)
    if output.resume == "none" and (marker or own_states(folder / STATE)):
        raise InputError(
            f"--save_dir {folder} holds a run; resume it with --resume auto, choose another --save_dir, or start over "
            "with --resume none --overwrite true"
        )
    if marker and not marker.saved:
        for option, file in read.items():
            if any(same_file(file, path) for path in found):
                raise InputError(
                    f"--{option} {file} has a name that this run would replace: choose another --save_dir, or move it"
                )
        if not marker.saving:
            found = [path for path in found if path.name not in BEFORE_A_SAVE]
        if marker.saving or not found:
            return
    names = ", ".join(path.name for path in found)
    whose = "checkpoints of another run" if "safetensors" in names else "files that this run would replace"
    gone = " and no state to resume from" if output.resume == "auto" else ""
    raise InputError(
        f"--save_dir {folder} holds {whose} ({names}){gone}: choose another --save_dir, or replace them with "
        "--resume none --overwrite true"
    )


def earlier_files(folder: Path) -> list[Path]:
    """The files of an earlier run, and files with the same names; without a config.yaml of the user."""
    found = [path for name in RUN_FILES if (path := folder / name).exists() or path.is_symlink()]
    return [path for path in found if path.name != CONFIG or _is_ours(path)] + own_states(folder / STATE)


def check_states(folder: Path, run: str, steps: range, every: tuple[int, int], accelerator: Accelerator) -> None:
    """Refuses, before the work, what has the name of the states' folder, or of a state that the run will save.

    Args:
        run: the id of the run that continues in the folder; empty: a new one, which removes all states there.
        steps: the steps of the run.
        every: it saves at the multiples of these, and at its end.

    Raises:
        InputError: on every rank, names the folder.
    """
    refusal = ""
    if accelerator.is_main_process:
        if not (folder / STATE).is_dir() and os.path.lexists(folder / STATE):
            refusal = f"{folder / STATE} is no folder, and this run saves its states there: move it"
        for step, path in sorted(foreign_states(folder / STATE, run).items()):
            if step in steps and (step == steps[-1] or any(step % each == 0 for each in every)):
                refusal = refusal or foreign_words(path)
    _refuse_everywhere(refusal)


def make_room(folder: Path) -> None:
    """Removes an earlier run's files; called when the new run is ready to start."""
    for path in earlier_files(folder):
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # it stays if it contains other files
        (folder / STATE).rmdir()


def take_over(folder: Path, run: str, in_place: bool, accelerator: Accelerator) -> None:
    """Takes the folder for a run that is ready to start: removes an earlier run's files and writes the marker.

    Args:
        run: the id of the run.
        in_place: the run continues from a state in this folder.
    """
    accelerator.wait_for_everyone()  # others may still read the files that are removed
    if accelerator.is_main_process:
        if not in_place:
            make_room(folder)
        sweep(folder)
        mark(folder, Marker(run, saved=in_place, saving=in_place))


def sweep(folder: Path) -> None:
    """Removes incomplete files of a killed run. Only the run that holds the lock may call it."""
    for path in folder.glob(".*.partial"):
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def write_config(folder: Path, text: str) -> Path | None:
    """Writes the resolved options to config.yaml, or beside it if that is a file of the user; None if both are."""
    path = folder / CONFIG
    if path.exists() and not _is_ours(path):
        path = folder / RESOLVED
        if path.exists() and not _is_ours(path):
            return None
    write_whole(path, text)
    return path


def _is_ours(config: Path) -> bool:
    """Whether a run wrote the file: then its first line is the command."""
    try:
        with open_regular(config) as file:
            return file.readline(100).startswith(MARK.encode())
    except OSError:
        return False


def _refuse_everywhere(refusal: str) -> None:
    if refusal := broadcast_object_list([refusal])[0]:
        raise InputError(refusal)
