"""Converts a file or a folder, with several processes: what codec.compress, codec.decompress and export.runtime share.

Needs no torch: the programs say what opens a codec.
"""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from coco224.errors import counted
from coco224.files import before_rename, check_file, check_writable, in_words, same_file
from coco224.processes import die_with_parent, possible_processes, usable_cores
from coco224.walk import say_left_out, walk
from codec.errors import InputError, SomeFailed, no_file, out_of_memory
from codec.unfinished import Job, Unfinished, alone


class Settings(Protocol):
    """What decides how files are converted."""

    @property
    def num_proc(self) -> int:
        """Processes."""

    @property
    def overwrite(self) -> bool:
        """Whether files that exist are replaced."""

    def inputs(self) -> list[Path]:
        """The files, such as the checkpoint, that decide the content of the files; InputError if one is not given."""

    def deciding(self) -> list[str]:
        """What else decides it."""


@dataclass(frozen=True)
class Conversion:
    """The differences between the programs.

    Attributes:
        name: of the program.
        reads: suffixes of the files that it reads from a folder, in lower case.
        folder_suffix: suffix of the files that it writes to a folder.
        writes: suffixes that the name of a single file may have; None: any.
        open: opens the codec of these options; with several processes each opens it, for so many threads.
        convert: converts a file to another with this codec and these options, completely or not at all; raises
            InputError with the reason.
        check: raises InputError if the codec cannot do what the options say.
    """

    name: str
    reads: frozenset[str]
    folder_suffix: str
    writes: frozenset[str] | None
    open: Callable[[Any, int | None], Any]
    convert: Callable[[Any, Path, Path, Any], None]
    check: Callable[[Any, Any], None] = lambda codec, options: None


def convert(conversion: Conversion, source: Path, target: Path, options: Settings) -> None:
    """Converts a file, or the files of a folder.

    Raises:
        InputError: the options cannot work, and nothing was written.
        SomeFailed: some files failed, and all others are written.
        DataError: the target cannot be written, or another command converts into it.
    """
    jobs = find_jobs(conversion, source, target)
    inputs = options.inputs()
    check_targets(source, target, jobs, inputs)
    with alone(target, conversion.name) if source.is_dir() else contextlib.nullcontext():
        unfinished = _unfinished(conversion, source, target, options, inputs)
        _convert(conversion, jobs, options, unfinished)


def find_jobs(conversion: Conversion, source: Path, target: Path) -> list[Job]:
    """The files to make, in the order of their names.

    Raises:
        InputError: there is nothing to read, or the target cannot be written.
    """
    if source.is_dir():
        if target.is_file():
            raise InputError(f"{target} is a file and {source} a folder; name a folder to write")
        found = walk(source, conversion.reads)
        say_left_out(source, found.left_out)
        names = sorted(Path(name) for name, _ in found.files)
        if not names:
            raise InputError(f"{source} holds no file that ends in {' '.join(sorted(conversion.reads))}")
        jobs = [(source / name, (target / name).with_suffix(conversion.folder_suffix)) for name in names]
        made: dict[Path, Path] = {}
        for path, out in jobs:
            if made.setdefault(out, path) != path:
                raise InputError(f"{made[out]} and {path} would both become {out}; rename one of them")
        return jobs
    if not source.is_file():
        raise InputError(f"{source}: {no_file(source)}; name a file or a folder")
    if target.is_dir():
        raise InputError(f"{target} is a folder and {source} a file; name the file to write")
    if conversion.writes is not None and target.suffix.lower() not in conversion.writes:
        raise InputError(f"{target}: give a name that ends in {' or '.join(sorted(conversion.writes))}")
    if same_file(source, target):
        raise InputError(f"{target} is the source itself; name another file")
    return [(source, target)]


def check_targets(source: Path, target: Path, jobs: list[Job], inputs: Sequence[Path]) -> None:
    """Checks, before anything is loaded, that the target can be written and is no file that the command reads.

    Args:
        inputs: the files that the codec is made of.

    Raises:
        DataError: it cannot be written, or an input would be replaced.
    """
    if not source.is_dir():
        check_file("TARGET", target, inputs)
        return
    check_writable("TARGET", target)
    there = [out for _, out in jobs if out.exists()]
    read = {_identity(path) for path in (*inputs, *(path for path, _ in jobs)) if there and path.exists()}
    for out in there:
        if _identity(out) in read:
            raise InputError(f"{out} is a file that the command reads; name another target")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unfinished(
    conversion: Conversion, source: Path, target: Path, options: Settings, inputs: Sequence[Path]
) -> Unfinished | None:
    """The record of a folder's finished files; None for a single file, and if an input cannot be read."""
    if not source.is_dir() or not all(path.is_file() for path in inputs):
        return None
    return Unfinished(target, conversion.name, inputs, options.deciding())


def _convert(conversion: Conversion, jobs: list[Job], options: Settings, unfinished: Unfinished | None) -> None:
    """Does the jobs that are not done yet.

    Raises:
        InputError: a target exists, or the codec cannot do it; nothing was written.
        SomeFailed: some files failed, and all others are written.
    """
    kept = unfinished.kept(jobs) if unfinished else set()
    if kept:
        print(f"kept {len(kept)} of {counted(len(jobs), 'file')} from a run that was interrupted", file=sys.stderr)
    jobs = [job for job in jobs if job not in kept]
    there = [target for _, target in jobs if target.exists()]
    if there and not options.overwrite:
        others = f" and {len(there) - 1} more exist" if there[1:] else " exists"
        raise InputError(f"{there[0]}{others}; name another target, or replace with --overwrite true")
    failures = list(_failures(conversion, jobs, options, unfinished))
    if failures:  # the record stays: the same command tries these files again, and no other
        raise SomeFailed(failures, len(jobs), "file")
    if unfinished:
        unfinished.remove()


def _failures(
    conversion: Conversion, jobs: list[Job], options: Settings, unfinished: Unfinished | None
) -> Iterator[str]:
    """Does the jobs; gives a sentence for each job that failed."""
    if not jobs:
        return

    worker = _Worker(conversion, options, unfinished)
    worker.open()  # also with several processes: a bad checkpoint is refused before they start
    conversion.check(worker.codec, options)
    processes = possible_processes(min(options.num_proc, len(jobs)))
    if unfinished:
        unfinished.begin()
    found = map(worker, jobs) if processes == 1 else _spread(worker, jobs, processes)
    yield from filter(None, found if len(jobs) == 1 else _with_progress(found, len(jobs)))


def _with_progress(found: Iterable[str | None], count: int) -> Iterable[str | None]:
    """Shows how many of the files are done, if tqdm is installed: a device may lack it."""
    try:
        from tqdm import tqdm
    except ImportError:
        return found
    return tqdm(found, total=count, unit=" files")


class _Worker:
    """Converts files with a codec that is opened once in each process."""

    def __init__(self, conversion: Conversion, options: Settings, unfinished: Unfinished | None) -> None:
        self._open, self._convert, self._options = conversion.open, conversion.convert, options
        self._unfinished = unfinished

    def open(self, threads: int | None = None) -> None:
        self.codec = self._open(self._options, threads)

    def __call__(self, job: Job) -> str | None:
        """Converts a file; returns the reason if that failed."""
        record = before_rename(partial(self._unfinished.add, job)) if self._unfinished else contextlib.nullcontext()
        try:
            with record:
                self._convert(self.codec, *job, self._options)
        except InputError as error:
            return f"{job[0]}: {error}"
        except OSError as error:
            return in_words(error) if error.filename else f"{job[1]}: {in_words(error)}"
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return f"{job[0]}: it does not fit into memory"
        return None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "codec"}


def _spread(worker: _Worker, jobs: list[Job], processes: int) -> Iterator[str | None]:
    """The outcomes of the jobs."""
    threads = max(1, usable_cores() // processes)
    context = multiprocessing.get_context("spawn")  # not fork: torch has threads
    with ProcessPoolExecutor(processes, context, _start, (worker, threads)) as pool:
        try:
            for future in as_completed([pool.submit(_work, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, probably because memory ran out: give a smaller --num_proc"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # waits for the files that are being written


def _start(worker: _Worker, threads: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work
    die_with_parent()
    _worker = worker
    _worker.open(threads)


def _work(job: Job) -> str | None:
    return _worker(job)


_worker: _Worker
