"""Files that are whole or absent, locks, what is opened at all, and errors in words."""

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from coco224 import files
from coco224.errors import DataError
from coco224.files import (
    check_file,
    check_writable,
    in_words,
    link_or_copy,
    lock,
    read_json,
    read_regular,
    sync_folder,
    whole_or_absent,
    write_whole,
)
from coco224.making.manifest import read_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A file, and an earlier one that is called best."""
    (tmp_path / "last").write_text("new")
    (tmp_path / "best").write_text("old")
    return tmp_path / "last"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(number: int) -> object:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_another_name_takes_no_room_and_keeps_what_it_names(last: Path) -> None:
    best = last.with_name("best")
    link_or_copy(last, best)
    assert best.samefile(last)
    write_whole(last, "newer")
    assert best.read_text() == "new"


def test_without_hard_links_it_is_a_copy(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    best = last.with_name("best")
    link_or_copy(last, best)
    assert not best.samefile(last)
    assert best.read_text() == "new"
    assert names(last.parent) == ["best", "last"]


def test_two_writers_of_one_file_do_not_meet(last: Path) -> None:
    with whole_or_absent(last) as first, whole_or_absent(last) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert last.read_text() == "first"
    assert names(last.parent) == ["best", "last"]


def test_what_fails_leaves_the_older_file_and_names_it(last: Path) -> None:
    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught, whole_or_absent(last) as beside:
        fail(beside)
    assert caught.value.filename == str(last)
    assert last.read_text() == "new"
    assert names(last.parent) == ["best", "last"]


@pytest.mark.parametrize("length", [255, 83])
def test_the_longest_names_can_be_written(tmp_path: Path, length: int) -> None:
    name = "a" * length if length == 255 else "像" * length  # 249 bytes
    write_whole(tmp_path / name, b"1")
    assert names(tmp_path) == [name]


@pytest.mark.slow
def test_what_a_kill_left_is_swept_by_the_next_process_and_harms_no_file(last: Path) -> None:
    """It is another name of a file that is in use: nothing may be written into it."""
    program = """
import os, sys, time
from pathlib import Path
from coco224.files import whole_or_absent
last = Path(sys.argv[1])
with whole_or_absent(last.with_name("best")) as beside:
    os.link(last, beside)
    print("linked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program, last], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline()
    files._sweep.cache_clear()
    write_whole(last.with_name("other"), "of a process that still runs, nothing is swept")
    assert len(names(last.parent)) == 4
    process.send_signal(signal.SIGKILL)
    process.communicate()
    files._sweep.cache_clear()
    link_or_copy(last, last.with_name("best"))
    assert names(last.parent) == ["best", "last", "other"]
    assert last.read_text() == "new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_folders_is_put_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(number))
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_a_lock_is_one_process_s_until_it_ends(tmp_path: Path) -> None:
    held = lock(tmp_path / "new" / "lock", "another run writes there")
    with pytest.raises(DataError, match="another run writes there"):
        lock(tmp_path / "new" / "lock", "another run writes there")
    held.close()
    lock(tmp_path / "new" / "lock", "another run writes there").close()


def test_a_file_of_a_user_is_no_lock(tmp_path: Path) -> None:
    path, target = tmp_path / ".lock", tmp_path / "mine"
    path.write_text("mine")
    with pytest.raises(DataError, match=r"\.lock is no lock of this program: move it"):
        lock(path, "another run writes there")
    path.rename(target)
    path.symlink_to(target)
    with pytest.raises(DataError, match="is no lock of this program"):
        lock(path, "another run writes there")
    assert target.read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worth_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with pytest.warns(UserWarning, match="without locks"):
        lock(tmp_path / "lock", "another run writes there").close()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link") == b"abc"
    with pytest.raises(OSError, match="more than"):
        read_regular(tmp_path / "a", most=2)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        began = time.monotonic()
        for name in ("fifo", "device", "socket"):
            with pytest.raises(OSError, match=f"not a regular file.*{name}"):
                read_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    assert time.monotonic() - began < 5


def test_json_of_a_stranger_is_bounded(tmp_path: Path) -> None:
    """A list of empty objects takes 25 times its file's size."""
    (tmp_path / "x.json").write_bytes(b"[" + b"{}," * 2**21 + b"{}]")
    with pytest.raises(OSError, match="more than 4 MB"):
        read_json(tmp_path / "x.json")
    assert len(read_manifest(tmp_path / "x.json")) == 2**21 + 1
    with (tmp_path / "x.json").open("r+b") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(OSError, match="more than 33 MB"):
        read_manifest(tmp_path / "x.json")


def test_errors_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_words(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jpg")) == (
        "a.jpg: No such file or directory"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out" / "a"))
    assert in_words(full) == (
        f"the disk is full (No space left on device), {tmp_path}/out/a cannot be written: make room"
    )
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "tmp" / "a"))
    assert in_words(full) == (
        f"the temporary folder {tmp_path}/tmp is full (No space left on device): make room, or set TMPDIR"
    )


def test_an_output_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable("--save_dir", tmp_path / "a" / "b")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "a", "it is a file")):
        with pytest.raises(DataError, match=f"--save_dir .* cannot be written .{why}.: name another folder"):
            check_writable("--save_dir", folder)
    with pytest.raises(DataError, match="--save_dir /proc/a cannot be written"):
        check_writable("--save_dir", Path("/proc/a"))


def test_a_link_stays_and_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2" / "there").write_text("old")
    for name in ("there", "new"):
        (tmp_path / name).symlink_to(Path("disk2", name))
        write_whole(tmp_path / name, name)
        assert (tmp_path / name).readlink() == Path("disk2", name)
        assert (tmp_path / "disk2" / name).read_text() == name
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "pipe").symlink_to("fifo")
    (tmp_path / "self").symlink_to("self")
    os.mknod(tmp_path / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    reader, writer = os.pipe()
    (tmp_path / "out").symlink_to(f"/proc/self/fd/{writer}")
    with tempfile.TemporaryFile() as opened:
        (tmp_path / "opened").symlink_to(f"/proc/self/fd/{opened.fileno()}")
        before = names(tmp_path)
        for name in ("fifo", "pipe", "self", "device", "out", "opened", "disk2"):
            with pytest.raises(OSError, match=str(tmp_path)):
                write_whole(tmp_path / name, "text")
            with pytest.raises(DataError, match=f"--json {tmp_path}/{name}: it cannot be written there"):
                check_file("--json", tmp_path / name)
    os.close(reader)
    os.close(writer)
    assert names(tmp_path) == before


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    (tmp_path / "link").symlink_to("r.json")
    check_file("--json", tmp_path / "new", [tmp_path / "r.json", tmp_path / "none"])
    for name in ("r.json", "link"):
        with pytest.raises(DataError, match=f"--json {tmp_path}/{name}: the command reads this file too"):
            check_file("--json", tmp_path / name, [tmp_path / "r.json"])
    with pytest.raises(DataError, match=r"it cannot be written there .Not a directory.; name another file"):
        check_file("--out", tmp_path / "r.json" / "x")
    with pytest.raises(DataError, match=r"it cannot be written there .No such file or directory.; name another file"):
        check_file("--out", Path("/proc/none/x"))


def test_a_disk_below_the_temporary_folder_is_not_that_folder(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk.parent))
    said = in_words(OSError(errno.ENOSPC, "No space left on device", str(small_disk / "x")))
    assert said == f"the disk is full (No space left on device), {small_disk}/x cannot be written: make room"
