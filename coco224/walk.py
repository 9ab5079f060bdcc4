"""Finds the files of a folder for all commands, and counts the files that are left out."""

import errno
import os
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coco224.errors import DataError, counted, printable
from coco224.ranks import is_first_here

# Folders of other programs begin with: hidden ones (.Trashes, .snapshot), a NAS's thumbnails and bin (@eaDir,
# @Recycle), Windows' bin ($RECYCLE.BIN).
_FOREIGN = (".", "@", "$")
# Or they are called, in lower case: macOS's zip and shares, a NAS's bins and snapshots, what a disk's check found.
_FOREIGN_NAMES = frozenset(
    {
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("#recycle", "#snapshot", "~snapshot"),
        *("system volume information", "recycler", "lost+found", "lost.dir", "found.000"),
    }
)
_BROKEN_LINK = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_FOLDER = "folder "
_TWICE = _FOLDER + "linked twice"
_KINDS_NAMED = 6


@dataclass
class Found:
    """The files of a folder and its subfolders.

    Attributes:
        files: names relative to the folder, sorted, and sizes in bytes; 0 for a file that does not exist any more.
        left_out: number of files by reason: their suffix, "no suffix", "hidden", "not regular" or "broken link"; and
            number of skipped folders, as "folder @eaDir" or "folder linked twice".
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, suffixes: frozenset[str]) -> Found:
    """Finds regular files, and links to them, that end in one of the suffixes (in lower case, with the dot).

    Links to folders are followed. A folder that is reached twice is used once: at its real path, or else at the first
    link in the order of names.

    Raises:
        DataError: the folder, or one in it, cannot be read.
    """
    found = Found()
    seen: set[object] = set()
    folders = [""]
    links: list[str] = []
    while folders or links:
        # Real folders come before links, so that real paths have priority.
        name = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(folder / name)
            if identity in seen:
                found.left_out[_TWICE] += 1
                continue
            seen.add(identity)
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    _sort_in(entry, f"{name}/{entry.name}" if name else entry.name, suffixes, found, folders, links)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{error.filename or folder / name} cannot be read ({reason}): make it readable") from None
        links.sort()
    found.files.sort()
    return found


def _sort_in(
    entry: os.DirEntry[str], name: str, suffixes: frozenset[str], found: Found, folders: list[str], links: list[str]
) -> None:
    """Takes an entry of a folder, notes it for later (a folder), or counts it as left out."""
    suffix = Path(entry.name).suffix.lower()
    wanted = suffix in suffixes and not entry.name.startswith(".")
    if entry.is_file(follow_symlinks=False) and not wanted:  # no stat
        found.left_out["hidden" if entry.name.startswith(".") else suffix or "no suffix"] += 1
        return
    try:
        status = entry.stat()
    except OSError as error:
        if wanted:
            found.files.append((name, 0))  # reading it later gives the error
        elif error.errno in _BROKEN_LINK:
            found.left_out["broken link"] += 1
        else:
            raise
        return
    if stat.S_ISDIR(status.st_mode):
        if entry.name.startswith(_FOREIGN) or entry.name.lower() in _FOREIGN_NAMES:
            found.left_out[_FOLDER + entry.name] += 1
        else:
            (links if entry.is_symlink() else folders).append(name)
    elif not stat.S_ISREG(status.st_mode):
        found.left_out["not regular"] += 1
    elif wanted:
        found.files.append((name, status.st_size))
    else:
        found.left_out["hidden" if entry.name.startswith(".") else suffix or "no suffix"] += 1


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """For example "12 files left out: 10 .gif, 2 not regular"; empty where nothing was left out."""
    files = {reason: count for reason, count in left_out.items() if not reason.startswith(_FOLDER)}
    folders = {reason.removeprefix(_FOLDER): count for reason, count in left_out.items() if reason not in files}
    parts = []
    for kinds, noun, verb in ((files, "file", "left out"), (folders, "folder", "passed over")):
        if kinds:
            parts.append(f"{counted(sum(kinds.values()), noun)} {verb}: {_named(kinds)}")
    return "; ".join(parts)


def say_left_out(folder: Path, left_out: Mapping[str, int]) -> None:
    """Prints one line on stderr if files were left out, from the first process of each node."""
    if left_out and is_first_here():
        print(printable(f"{folder}: {left_out_in_words(left_out)}"), file=sys.stderr)


def _named(kinds: Mapping[str, int]) -> str:
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count} {kind}" for kind, count in ordered[:_KINDS_NAMED]]
    rest = sum(count for _, count in ordered[_KINDS_NAMED:])
    return ", ".join(words) + (f", {rest} others" if rest else "")


def _identity(folder: Path) -> object:
    status = folder.stat()
    # Some network file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else folder.resolve()
