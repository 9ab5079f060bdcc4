"""Safe use of files: atomic writes, locks, only regular files, and errors in words. Only the standard library."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from coco224.errors import DataError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors of a full disk or quota."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})
_MOST_JSON = 2**22
_NAME_PART = 40  # a temporary name repeats so many characters of the name: names have at most 255 bytes

expanded = os.path.expanduser
"""Replaces the leading `~` of a path: a shell does not in `--option=~/x`, nor in a file."""


_before_rename: ContextVar[Callable[[Path], None] | None] = ContextVar("before_rename", default=None)


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; when the block ends without an error, it is synced and renamed to `path`.

    The temporary path is unique to this process. Temporary files of killed processes of this machine are removed.
    A link stays: the file that it points to is written.

    Raises:
        OSError: the file cannot be written, or `path` is a folder, a device, a FIFO or a socket; the error names
            `path`, and what exists does not change.
    """
    target = _landing(path)
    beside = target.with_name(f".{target.name[:_NAME_PART]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent.absolute())
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        if call := _before_rename.get():
            call(beside)
        beside.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def before_rename(call: Callable[[Path], None]) -> Iterator[None]:
    """In the block, `whole_or_absent` calls this with each temporary path that is complete, before it renames it.

    Size and date of the file stay the same. So a record can be exact: it is written first, and if the rename does not
    follow, it names a file that is not there.
    """
    token = _before_rename.set(call)
    try:
        yield
    finally:
        _before_rename.reset(token)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all; text as UTF-8."""
    with whole_or_absent(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a synced file, which is never changed in place, a second name: by a hard link if possible, or by a copy."""
    with whole_or_absent(target) as beside:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def sync_folder(folder: Path) -> None:
    """Makes the folder's renames durable if its file system can do that: CIFS and FUSE refuse it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def lock(path: Path, refusal: str) -> BinaryIO:
    """Takes an advisory lock on a file, created if necessary, until the returned file is closed.

    On a file system without locks it only warns.

    Args:
        refusal: error message that says who holds the lock and what to do.

    Raises:
        DataError: `refusal`, if another process holds the lock; or there is a link or a file with content, which is
            no lock.
        OSError: the file cannot be created, or is not regular.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size):
                raise DataError(f"{path} is no lock of this program: move it, or give another folder")
            _check_regular(path, status)
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # the holder removed the file after we had opened it
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{path.parent} is on a file system without locks ({error.strerror}): let no second process write "
                    "there",
                    stacklevel=2,
                )
                return file
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DataError(refusal) from None
            error.filename = str(path)
            raise


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, to read it.

    Raises:
        OSError: the file does not exist or is not regular. A FIFO, device or socket is refused before it is opened,
            which could wait or have effects.
    """
    _check_regular(path, path.stat())
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        most: the largest file to read, in bytes.

    Raises:
        OSError: as in `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most // 10**6} MB", str(path))
        return file.read()


def checksum(path: Path) -> str:
    """SHA-256 of a regular file, which is not read into memory at once.

    Raises:
        OSError: as in `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def in_words(error: OSError) -> str:
    """A part of a sentence: the file, what is wrong with it and, if the disk is full, what to do."""
    name = error.filename2 or error.filename
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.errno in FULL:
        temporary = Path(tempfile.gettempdir())
        if name and _is_on(temporary, Path(os.fsdecode(name))):
            return f"the temporary folder {temporary} is full ({reason}): make room, or set TMPDIR"
        return f"the disk is full ({reason}){f', {os.fsdecode(name)} cannot be written' if name else ''}: make room"
    return f"{os.fsdecode(name)}: {reason}" if name and not isinstance(name, int) else reason


def _is_on(folder: Path, file: Path) -> bool:
    """Whether a file is in a folder and on its disk: another disk may be mounted below it."""
    with contextlib.suppress(OSError):
        if file.parent.stat().st_dev != folder.stat().st_dev:
            return False
    return file.is_relative_to(folder)


def shared_memory() -> int:
    """Free bytes in /dev/shm, which processes need for locks and to exchange data; 0: it is not writable."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def read_json(path: Path, most: int = _MOST_JSON) -> Any:
    """The value of a JSON file, with or without a byte order mark.

    Args:
        most: the largest file to read, in bytes. The objects of a hostile one take 25 times as much memory.

    Raises:
        OSError: as in `read_regular`, or the file is larger.
        ValueError: as in `parse_json`.
    """
    return parse_json(read_regular(path, most).decode("utf-8-sig"))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. `json` itself would take the last value of a key that comes twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{json.dumps(name)[:40]} is given twice")
        found[name] = value
    return found


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder with its parents, and returns the new ones, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Removes folders that `make_folder` made, if they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_writable(option: str, folder: Path) -> None:
    """Checks, before the work, that an output folder can be made and written; leaves no files there.

    Args:
        option: the option that named the folder.

    Raises:
        DataError: the folder cannot be made or written.
    """
    reason = _obstacle(option, folder)
    if reason:
        raise DataError(f"{option} {folder} cannot be written ({reason}): name another folder")


def check_file(option: str, path: Path, read: Iterable[Path] = (), begins: tuple[bytes, ...] = ()) -> None:
    """Checks, before the work, that `whole_or_absent` can write an output file; leaves no files there.

    Args:
        option: the option that named the file.
        read: the files that the command reads.
        begins: how the files begin that the command writes; another file is not replaced.

    Raises:
        DataError: the file cannot be written, it is one that the command reads, or it begins otherwise.
    """
    try:
        reason = _obstacle(option, _landing(path).parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        raise DataError(f"{option} {path}: it cannot be written there ({reason}); name another file")
    if path.exists() and any(same_file(path, each) for each in read):
        raise DataError(f"{option} {path}: the command reads this file too; name another file")
    if begins and path.is_file():
        with path.open("rb") as file:
            found = file.read(max(map(len, begins)))
        if found and not found.startswith(begins):
            raise DataError(f"{option} {path}: the command writes no such file; move it, or name another")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are of one existing file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _obstacle(option: str, folder: Path) -> str:
    """Why a folder cannot be made or written; empty if it can. A full disk is a DataError."""
    made: list[Path] = []
    try:
        made = make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        if error.errno in FULL:
            raise DataError(f"{option} {folder}: the disk is full ({error.strerror}): make room") from None
        return "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else str(error.strerror)
    finally:
        remove_empty(made)
    return ""


def _landing(path: Path) -> Path:
    """The path of the file that is written for `path`: where a link points to.

    Raises:
        OSError: there is something that is no regular file.
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, path.stat())
    target = path
    while target.is_symlink():
        folder = target.parent.resolve()
        if folder.is_relative_to("/proc"):  # /dev/stdout: a file that a process has open may not be replaced
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        target = folder / target.readlink()
    return target


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@functools.cache
def _host() -> str:
    """The machine and the container, which may have the same name: a process number means a process only there."""
    try:
        processes = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]


@functools.cache
def _sweep(folder: Path) -> None:
    """Removes temporary files of killed processes of this machine; only once per process, since listing takes time."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            left = re.fullmatch(rf"\..*\.{_host()}-(\d+)-[0-9a-f]{{8}}\.partial", entry.name, re.DOTALL)
            if left and not Path("/proc", left[1]).exists():
                Path(entry.path).unlink()
