"""Files that are whole or absent, whenever the power goes. Needs no torch."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block ends well: synced to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a synced file, which nothing changes in place, another name: a copy where there are no hard links."""
    with whole_or_absent(target) as beside:
        beside.unlink(missing_ok=True)  # left by a kill, maybe a name of a file that shall stay as it is
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def sync_folder(folder: Path) -> None:
    """Makes the folder's renames durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
