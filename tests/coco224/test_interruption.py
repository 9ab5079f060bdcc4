"""Whatever happens in the middle, the same command ends at the same dataset, and until then there is none."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

import coco224.prepare
from coco224.prepare import main

pytestmark = pytest.mark.slow

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parents[2]
SLOW = ("--encoding", "png", "--num_proc", "2")  # some 12 ms a picture


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory, make_coco: Callable[..., Path]) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train=130, val=3)


def again(coco: Path, out: Path) -> int:
    """The same command, to its end, in this process."""
    return main(["--coco_dir", str(coco), "--out_dir", str(out), *SLOW[:2], "--num_proc", "1"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, coco: Path) -> Path:
    """The dataset of a command that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert again(coco, out) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed(whole: Path, contents: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    return contents(whole)


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    """The command, running, with at least one shard finished."""
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((out.parent / f".{out.name}.partial" / "reports").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def assert_no_dataset(out: Path) -> None:
    assert not out.exists()
    for folder in (out.parent / f".{out.name}.partial", out.parent / f".{out.name}.partial" / "dataset"):
        assert folder.is_dir()
        with pytest.raises(FileNotFoundError):
            datasets.load_from_disk(folder)


def workers(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_number_of_processes_changes_no_byte(
    tmp_path: Path,
    coco: Path,
    undisturbed: dict[str, str],
    prepare: Callable[..., Done],
    contents: Callable[[Path], dict[str, str]],
) -> None:
    assert prepare(coco, tmp_path / "out", *SLOW).returncode == 0
    assert contents(tmp_path / "out") == undisturbed


def test_killed_and_run_again(
    tmp_path: Path,
    coco: Path,
    undisturbed: dict[str, str],
    command: Callable[..., list[str]],
    contents: Callable[[Path], dict[str, str]],
) -> None:
    out = tmp_path / "out"
    process = start(command(coco, out, *SLOW), out)
    spawned = workers(process.pid)
    process.kill()
    process.communicate()
    assert_no_dataset(out)
    for _ in range(100):
        if all(map(gone, spawned)):
            break
        time.sleep(0.1)
    assert all(map(gone, spawned)), "workers outlive their parent"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial").rglob("*.arrow")}
    assert 1 <= len(kept) < 6
    first = sorted((tmp_path / ".out.partial" / "reports").glob("[!.]*"))  # not one that was being written
    inode = (tmp_path / ".out.partial/dataset" / first[0].stem.replace("-", "/", 1)).with_suffix(".arrow").stat().st_ino

    assert again(coco, out) == 0
    assert contents(out) == undisturbed
    assert inode in {path.stat().st_ino for path in out.rglob("*.arrow")}, "a finished shard was made again"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
    ids=["terminated", "job-terminated", "ctrl-c"],
)
def test_a_signal_stops_promptly_and_the_same_command_continues(
    tmp_path: Path,
    coco: Path,
    undisturbed: dict[str, str],
    command: Callable[..., list[str]],
    contents: Callable[[Path], dict[str, str]],
    number: signal.Signals,
    to_group: bool,
) -> None:
    out = tmp_path / "out"
    process = start(command(coco, out, *SLOW), out)
    sent = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 5
    assert process.returncode == 75, err
    assert "same command continues" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert_no_dataset(out)
    if to_group:
        assert again(coco, out) == 0
        assert contents(out) == undisturbed


def test_a_second_ctrl_c_ends_at_once() -> None:
    program = """
import os, signal
from coco224.making.pool import StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.stopping
    os.kill(os.getpid(), signal.SIGINT)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 130


def test_other_options_discard_the_finished_part(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root, out = make_coco(tmp_path / "coco", train=40), tmp_path / "out"
    (root / "train2017" / "z.jpg").write_text("no picture")
    words = ["--coco_dir", str(root), "--out_dir", str(out), "--num_proc", "1"]
    assert main([*words, "--size", "64"]) == 2
    assert list((tmp_path / ".out.partial").rglob("*.arrow"))
    assert main([*words, "--size", "32", "--limit", "40"]) == 0
    data = datasets.load_from_disk(out)
    assert len(data["train"]) == 40
    assert {len(row) for row in data["train"]["image"]} == {32 * 32 * 3}


def test_an_overwriting_run_that_died_between_its_two_renames_is_completed(
    tmp_path: Path, make_coco: Callable[..., Path]
) -> None:
    root, out = make_coco(tmp_path / "coco"), tmp_path / "out"
    words = ["--coco_dir", str(root), "--out_dir", str(out), "--size", "32", "--num_proc", "1", "--overwrite", "true"]
    assert main(words) == 0
    out.rename(tmp_path / ".out.replaced")
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "out"]


def test_what_could_not_be_read_is_tried_again(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root, out = make_coco(tmp_path / "coco"), tmp_path / "out"
    photograph = root / "train2017" / "000000000000.jpg"
    whole = photograph.read_bytes()
    photograph.write_bytes(bytes(len(whole)))
    words = ["--coco_dir", str(root), "--out_dir", str(out), "--size", "32", "--num_proc", "1"]
    assert main(words) == 2
    photograph.write_bytes(whole)
    assert main(words) == 0
    assert len(datasets.load_from_disk(out)["train"]) == 6


def test_two_runs_do_not_write_one_dataset(
    tmp_path: Path, coco: Path, command: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    process = start(command(coco, out, *SLOW), out)
    try:
        assert main(["--coco_dir", str(coco), "--out_dir", str(out), *SLOW]) == 2
        assert "another run" in capfd.readouterr().err
    finally:
        process.kill()
        process.communicate()


def test_a_disk_too_small_is_refused_before_the_work(
    small_disk: Path, coco: Path, prepare: Callable[..., Done]
) -> None:
    done = prepare(coco, small_disk / "new" / "out")  # 133 raw crops are 20 MB
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "0.019 GB free" in done.stderr
    assert "0.020 GB at least" in done.stderr
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("num_proc", ["1", "2"])
def test_a_disk_that_fills_up_keeps_what_is_finished(
    small_disk: Path,
    coco: Path,
    whole: Path,
    undisturbed: dict[str, str],
    contents: Callable[[Path], dict[str, str]],
    num_proc: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Half of the dataset fits, two of its six shards; at the start there seemed to be room for all."""
    out, ballast = small_disk / "out", small_disk / "ballast"
    size = sum(path.stat().st_size for path in whole.rglob("*.arrow"))
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - size // 2))
    with monkeypatch.context() as patched:
        patched.setattr(coco224.prepare, "check_room", lambda *_: None)
        assert main(["--coco_dir", str(coco), "--out_dir", str(out), *SLOW[:2], "--num_proc", num_proc]) == 2
    err = capfd.readouterr().err
    assert "disk is full" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(small_disk.rglob("*.tmp*"))
    assert list(small_disk.rglob("*.arrow"))
    assert_no_dataset(out)

    ballast.unlink()
    assert again(coco, out) == 0
    assert contents(out) == undisturbed


def test_two_that_list_the_photographs_at_once_do_not_mix(
    tmp_path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second starts while the first still lists: it is refused before it lists, and leaves the first alone."""
    words = ["--coco_dir", str(coco), "--out_dir", str(tmp_path / "out"), "--size", "32", "--num_proc", "1"]
    statuses = []
    listed = coco224.prepare.coco_splits

    def list_slowly(*arguments: object) -> object:
        monkeypatch.setattr(coco224.prepare, "coco_splits", listed)
        statuses.append(main(words))
        return listed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coco224.prepare, "coco_splits", list_slowly)
    assert main(words) == 0
    assert statuses == [2]
    assert "another run" in capfd.readouterr().err
    assert len(datasets.load_from_disk(tmp_path / "out")["train"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root, out = make_coco(tmp_path / "coco"), tmp_path / "out"
    partial = tmp_path / ".out.partial"
    (partial / "dataset" / "train").mkdir(parents=True)
    for left in (
        "dataset/train/data-00000-of-00001.tmp77",
        "dataset/.manifest.json.0-1-0.partial",
        "dataset/train/.x.partial",
    ):
        (partial / left).write_text("half")
    assert main(["--coco_dir", str(root), "--out_dir", str(out), "--size", "32", "--num_proc", "1"]) == 0
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".") or ".tmp" in path.name] == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_any_error_of_the_disk_is_one_line(
    tmp_path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["--coco_dir", str(coco), "--out_dir", str(tmp_path / "out"), "--num_proc", "1", "--limit", "2"]) == 2
    assert os.strerror(number) in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_shared_memory_one_process_does_the_work(
    tmp_path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("coco224.processes.shared_memory", lambda: 0)
    words = ["--coco_dir", str(coco), "--out_dir", str(tmp_path / "out"), "--size", "32", "--num_proc", "2"]
    assert main(words) == 0
    assert "several processes need a writable /dev/shm" in capfd.readouterr().err
