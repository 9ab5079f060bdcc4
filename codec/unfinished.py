"""Records the finished files of a folder's conversion, so that the same command continues after an interruption."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from coco224.files import checksum, in_words, lock, make_folder, read_regular, remove_empty

_MOST_BYTES = 1 << 28
"""Of a record: a line for each of a million files."""

Job = tuple[Path, Path]
"""The source and the target file."""


@contextlib.contextmanager
def alone(folder: Path, program: str) -> Iterator[None]:
    """Makes a target folder and locks it against the same program; removes it again if nothing was written.

    Raises:
        DataError: the program already writes there.
    """
    made = make_folder(folder)
    path = folder / f".{program}.lock"
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, made)
        stack.enter_context(lock(path, f"TARGET {folder} is in use by another {program}: name another folder, or wait"))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


class Unfinished:
    """A file in the target folder that lists the finished files; it is removed at the end.

    Args:
        folder: the target folder.
        program: the program that writes there.
        inputs: the files, such as the checkpoint, that the result depends on.
        settings: other things that it depends on.
    """

    def __init__(self, folder: Path, program: str, inputs: Sequence[Path], settings: Sequence[str] = ()) -> None:
        self._path = folder / f".{program}.unfinished"
        contents = map(checksum, inputs)
        self._first = json.dumps([program, *contents, *settings])
        self._finished, self._begin = self._read()
        self._broken = False  # it cannot be written

    def kept(self, jobs: Sequence[Job]) -> set[Job]:
        """The jobs that an earlier run with the same inputs finished, and whose source and target did not change."""
        return {job for job in jobs if _line(job) in self._finished}

    def begin(self) -> None:
        """Begins the record, if there is none to go on with; before `add`, which may be called in other processes."""
        if self._begin:
            self._write("w", self._begin)
            self._begin = ""

    def add(self, job: Job, complete: Path) -> None:
        """Records, before it is renamed to the target, the file that becomes the target."""
        self._write("a", f"{_line(job, complete)}\n")

    def _write(self, mode: str, text: str) -> None:
        """Writes to the record; warns once if that is not possible."""
        if self._broken:
            return
        try:
            with open(self._path, mode, opener=_open_own) as file:
                file.write(text)
        except OSError as error:
            self._broken = True
            warnings.warn(f"after an interruption this folder starts over: {in_words(error)}", stacklevel=2)

    def remove(self) -> None:
        """Removes the record, unless it is a stranger's that could not be written."""
        if not self._broken:
            self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[set[str], str]:
        """The lines of an earlier run with the same inputs, and what begins the file if there is none.

        A line that a kill cut off is equal to that of no job.
        """
        with contextlib.suppress(OSError, ValueError):  # ValueError: a file of another program
            text = read_regular(self._path, _MOST_BYTES).decode()
            lines = text.splitlines()
            if lines and lines[0] == self._first:
                if not text.endswith("\n"):
                    with self._path.open("a") as file:
                        file.write("\n")
                return set(lines[1:]), ""
        return set(), f"{self._first}\n"


def _open_own(path: str, flags: int) -> int:
    """Neither waits for a FIFO nor writes through a link: the record is a file of this program."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _line(job: Job, complete: Path | None = None) -> str:
    """The line of a job; `complete` is the file that becomes its target, or else it is the target itself."""
    source, target = job
    return json.dumps([target.name, _state(source, source), _state(target, complete or target)])


def _state(path: Path, file: Path) -> list[object]:
    """A path, with size and date of a file."""
    try:
        status = file.stat()
    except OSError:
        return [str(path.absolute()), -1, -1]
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]
