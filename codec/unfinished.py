"""What a conversion of a folder has made so far, so that the same command goes on after an interruption."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from coco224.files import read_regular

Job = tuple[Path, Path]
"""What is read and what is written."""


class Unfinished:
    """A file in the target folder that lists what is made; it is removed when all is done.

    Args:
        folder: that is written.
        program: that writes it.
        inputs: files that decide what is written, the checkpoint among them.
    """

    def __init__(self, folder: Path, program: str, inputs: Sequence[Path]) -> None:
        self._path = folder / f".{program}.unfinished"
        self._first: list[object] = [program, *(hashlib.sha256(read_regular(path)).hexdigest() for path in inputs)]
        self._lines = self._read()

    def kept(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose source and target are as they were when a run with the same inputs had made the target."""
        return [job for job in jobs if _line(job) in self._lines]

    def add(self, job: Job) -> None:
        """Notes that the target is whole."""
        lines = [_line(job)] if self._lines else [self._first, _line(job)]
        with self._path.open("a" if self._lines else "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self._lines += lines

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[list[object]]:
        """The lines of an earlier run with the same inputs; none where there is no such run."""
        try:
            lines = [json.loads(line) for line in read_regular(self._path).splitlines()]
        except (OSError, ValueError):  # ValueError: a line that a kill cut off, or no file of ours
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
