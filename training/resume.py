"""Decides where a run starts: from a saved state that fits its options, or anew if that replaces no other run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from coco224.errors import counted
from coco224.files import checksum, in_words
from codec.cli import as_typed
from codec.errors import InputError
from codec.sample import to_start_from
from training.folder import RUN_FILES, STATE, check_free, new_id, read_marker
from training.options import Options
from training.state import Progress, Saved, load_state, newest_whole, restore_states

# The files that affect the result of a run: their contents must be equal; their paths may differ.
DECISIVE = {"init_checkpoint": to_start_from, "plugin": Path}


@dataclass(frozen=True)
class Origin:
    """The start of a run.

    Attributes:
        state: the folder of a state; None for a new run.
        in_place: the state is in --save_dir: the run continues there.
        run: the run's id.
    """

    state: Path | None
    in_place: bool
    run: str


@dataclass(frozen=True)
class DataIdentity:
    """The fingerprints of a dataset and of its validation split; the latter is empty if there is none."""

    data: str
    validation: str


def find_origin(options: Options, accelerator: Accelerator) -> Origin:
    """Finds the state to resume from; the main process reads the disk and tells the others.

    Raises:
        InputError: on every rank, if no state is intact, or the run would replace files that are not its own.
    """
    origin: Origin | None = None
    refusal = ""
    if accelerator.is_main_process:
        try:
            origin = _origin(options)
        except InputError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"--save_dir {options.output.save_dir}: {in_words(error)}"
    origin, refusal = broadcast_object_list([origin, refusal])
    if origin is None:
        raise InputError(refusal)
    return origin


def _origin(options: Options) -> Origin:
    output = options.output
    folder = Path(output.save_dir)
    marker = read_marker(folder)
    state: Path | None = None
    if output.resume == "auto":
        restore_states(folder / STATE)
        state = newest_whole(folder / STATE, marker.id if marker else "")
    elif output.resume != "none":
        state = newest_whole(Path(output.resume))
        if state is None:
            raise InputError(f"--resume {output.resume} holds no state of a run; give the folder state/ of a run")
    if state and state.resolve().parent == (folder / STATE).resolve():
        return Origin(state, True, marker.id if marker else load_state(state).progress.run or new_id())
    check_free(output, decisive_files(options))
    return Origin(state, False, new_id())


def saved_state(origin: Origin, options: Options, data: DataIdentity) -> Saved | None:
    """The state to resume from, with this command's options and data; None for a new run.

    Raises:
        InputError: the saved run differs from this one.
    """
    if origin.state is None:
        return None
    saved = load_state(origin.state)
    files = checksums(options)
    require_agreement(saved.progress, options, data, files, origin.in_place)
    saved.progress.options, saved.progress.validation = options.flat(), data.validation
    saved.progress.run = origin.run
    if not origin.in_place:  # another folder, which has no best_* files yet, and another run for the trackers
        saved.progress.best, saved.progress.tracker = {}, {}
    saved.progress.files = files | saved.progress.files
    return saved


def fresh_progress(options: Options, data: DataIdentity, run: str) -> Progress:
    """The progress of a new run on this dataset."""
    return Progress(options=options.flat(), **vars(data), run=run, files=checksums(options))


def checksums(options: Options) -> dict[str, str]:
    """SHA-256, by option, of the files that affect the result of a run.

    Files that do not exist any more, and files that the run itself replaces, are left out.

    Raises:
        OSError: a file cannot be read.
    """
    folder = Path(options.output.save_dir).resolve()
    replaced = {folder / name for name in RUN_FILES}
    return {
        name: checksum(path)
        for name, path in decisive_files(options).items()
        if path.exists() and path.parent.resolve() / path.name not in replaced
    }


def decisive_files(options: Options) -> dict[str, Path]:
    """The files that affect the result of a run, by option."""
    flat = options.flat()
    return {name: path_of(flat[name]) for name, path_of in DECISIVE.items() if flat[name]}


def require_agreement(
    saved: Progress, options: Options, data: DataIdentity, files: dict[str, str], in_place: bool
) -> None:
    """Refuses to continue a run with other settings.

    Args:
        options: the options of this command.
        files: the checksums of this command's files.
        in_place: the saved run is that of --save_dir, not of --resume.

    Raises:
        InputError: names all differences.
    """
    differences = [
        f"--{name} {_text(saved.options.get(name))} there, {_text(value)} here"
        for name, value in options.deciding().items()
        if saved.options.get(name) != value
    ]
    given = options.flat()
    for name in DECISIVE:
        then, now = saved.options.get(name), given[name]
        if bool(then) != bool(now):
            differences.append(f"--{name} {_text(then)} there, {_text(now)} here")
        elif name in files and saved.files.get(name, files[name]) != files[name]:
            differences.append(f"--{name} {now} has another content")
    if saved.data != data.data:
        differences.append(
            f"another dataset, --coco_dir {saved.options.get('coco_dir')} there, {given['coco_dir']} here"
        )
    elif saved.validation not in ("", data.validation) and (saved.best or saved.plateau):
        differences.append("another validation split, and its figures would be compared with the former ones")
    if differences:
        output = options.output
        place = f"--save_dir {output.save_dir}" if in_place else f"--resume {output.resume}"
        others = "another --save_dir, or --resume none --overwrite true to start over"
        if not in_place:
            others = "or --resume none --init_checkpoint FILE to start a new run with its weights"
        raise InputError(
            f"{place} holds a run that differs: {'; '.join(differences)}; give the same options to resume it, {others}"
        )


def accumulation_for(global_batch: int, batch_size: int, world_size: int) -> int:
    """The number of micro-batches per step that keeps the global batch on this number of ranks.

    Raises:
        InputError: it is not an integer.
    """
    if global_batch % (batch_size * world_size):
        divisors = [b for b in range(1, global_batch + 1) if global_batch % (b * world_size) == 0]
        raise InputError(
            f"the run has {counted(global_batch, 'picture')} per optimizer step, which "
            f"{counted(world_size, 'process')} with --batch_size "
            f"{batch_size} cannot divide into equal micro-batches; use --batch_size "
            + (", ".join(map(str, divisors)) if divisors else "with another number of processes")
        )
    return global_batch // (batch_size * world_size)


def _text(value: Any) -> str:
    return "absent" if value is None else as_typed(value)
