"""The folder of a run, --save_dir: marked as this program's, written by one run at a time; other files in it stay."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from coco224.errors import DataError
from coco224.files import check_writable, lock, make_folder, read_json, remove_empty, write_whole
from codec.errors import InputError
from training.options import COMMAND
from training.output import OutputOptions
from training.state import own_states, remove_folder

MARKER = "run.json"
LOCK = ".lock"
CONFIG = "config.yaml"
STATE = "state"

# What a run writes into its folder besides its states.
RUN_FILES = (
    "last.safetensors",
    "best_*.safetensors",
    CONFIG,
    "metrics.jsonl",
    "curves.png",
    "rd.png",
    "summary.json",
    MARKER,
)
_FORMAT = "npu-image-codec/run/1"
_RESOLVED = "resolved.yaml"  # in the place of config.yaml, where that is the user's own
_LEFTOVER = re.compile(r"\.(last|best_\w+|metrics|curves|rd|summary|run|config|resolved)\.\w+(\..+)?\.partial")


@dataclass(frozen=True)
class Marker:
    """What run.json says of the run that the folder belongs to.

    Attributes:
        id: tells this run from any other; its states have it too.
        saved: a state of it was whole. False: all that is here is of a run that was ended before its first state.
    """

    id: str
    saved: bool = False


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder; None without one.

    Raises:
        InputError: run.json is none of this program's.
    """
    path = folder / MARKER
    if not path.exists():
        return None
    try:
        values = read_json(path)
        if values.pop("format") == _FORMAT:
            return Marker(str(values["id"]), bool(values["saved"]))
    except (ValueError, KeyError, AttributeError):
        pass
    raise InputError(f"{path} is damaged or no file of this program: choose another --save_dir, or remove it")


def mark(folder: Path, marker: Marker) -> None:
    """Says whose the folder is."""
    if read_marker(folder) != marker:
        write_whole(folder / MARKER, json.dumps({"format": _FORMAT, **asdict(marker)}, indent=1) + "\n")


def new_id() -> str:
    """The id of a new run."""
    return secrets.token_hex(8)


def check_outputs(output: OutputOptions, accelerator: Accelerator) -> None:
    """Asks on the main process, which writes, whether the output folders can be written. Leaves nothing behind.

    Raises:
        InputError: on every rank, where they cannot.
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
    """Keeps other runs out of a folder, made if need be and removed again where nothing was written.

    Raises:
        InputError: on every rank, where another process holds it.
    """
    made: list[Path] = []
    held, refusal = None, ""
    if accelerator.is_main_process:
        made = make_folder(folder)
        try:
            held = lock(
                folder / LOCK,
                f"--save_dir {folder} is written by another run at this moment: give another --save_dir, or wait",
            )
            os.register_at_fork(after_in_child=held.close)  # a reader process that outlives a kill shall not hold it
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


def check_free(output: OutputOptions) -> None:
    """Refuses a folder whose files a run would replace that does not go on there.

    A run that was ended before its first state has nothing to lose, and files of other names stay.

    Raises:
        InputError: naming the files.
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
        return
    names = ", ".join(path.name for path in found)
    whose = "checkpoints of another run" if "safetensors" in names else "files that this run would replace"
    gone = " and no state to resume from" if output.resume == "auto" else ""
    raise InputError(
        f"--save_dir {folder} holds {whose} ({names}){gone}: choose another --save_dir, or replace them with "
        "--resume none --overwrite true"
    )


def earlier_files(folder: Path) -> list[Path]:
    """What an earlier run left, or has the name of such a file; not a config.yaml of the user's own."""
    found = [path for name in RUN_FILES for path in sorted(folder.glob(name))]
    return [path for path in found if path.name != CONFIG or _is_ours(path)] + own_states(folder / STATE)


def make_room(folder: Path) -> None:
    """Removes an earlier run's files for a new run that is ready to start."""
    for path in earlier_files(folder):
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # what is not ours stays in it
        (folder / STATE).rmdir()


def take_over(folder: Path, run: str, in_place: bool, accelerator: Accelerator) -> None:
    """Makes the folder the run's, which is ready to start: an earlier one makes room, the marker says whose it is.

    Args:
        run: the id of the run.
        in_place: it goes on from a state there.
    """
    accelerator.wait_for_everyone()  # others may still read what makes room
    if accelerator.is_main_process:
        if not in_place:
            make_room(folder)
        sweep(folder)
        mark(folder, Marker(run, saved=in_place))


def sweep(folder: Path) -> None:
    """Removes what a killed run left half written. Only for the run that holds the folder."""
    for path in folder.glob(".*.partial"):
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def write_config(folder: Path, text: str) -> Path:
    """Writes the resolved options to config.yaml, or beside it where that file is the user's own."""
    path = folder / CONFIG
    if path.exists() and not _is_ours(path):
        path = folder / _RESOLVED
        if path.exists() and not _is_ours(path):
            return folder / CONFIG
    write_whole(path, text)
    return path


def _is_ours(config: Path) -> bool:
    """Whether a run wrote it: its first line is the command."""
    try:
        with config.open("rb") as file:
            return file.readline(100).startswith(f"# {COMMAND}".encode())
    except OSError:
        return False


def _refuse_everywhere(refusal: str) -> None:
    if refusal := broadcast_object_list([refusal])[0]:
        raise InputError(refusal)
