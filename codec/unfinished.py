"""Records the finished files of a folder's conversion, so that the same command continues after an interruption."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from coco224.files import read_regular

Job = tuple[Path, Path]
"""The source and the target file."""


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
        contents = (hashlib.sha256(read_regular(path)).hexdigest() for path in inputs)
        self._first: list[object] = [program, *contents, *settings]
        self._lines = self._read()

    def kept(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that an earlier run with the same inputs finished, and whose source and target did not change."""
        return [job for job in jobs if _line(job) in self._lines]

    def add(self, job: Job) -> None:
        """Records that the target is complete."""
        lines = [_line(job)] if self._lines else [self._first, _line(job)]
        with self._path.open("a" if self._lines else "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self._lines += lines

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[list[object]]:
        """The lines of an earlier run with the same inputs; empty if there is none."""
        try:
            lines = [json.loads(line) for line in read_regular(self._path).splitlines()]
        except (OSError, ValueError):  # ValueError: a line that a kill cut off, or a file of another program
            return []
        return lines if lines and lines[0] == self._first else []


def _line(job: Job) -> list[object]:
    return [str(job[1].name), *(_state(path) for path in job)]


def _state(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError:
        return [str(path.absolute()), -1, -1]
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]
