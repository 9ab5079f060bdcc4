"""What is written in the background: nobody waits for a slow disk, nothing is lost, and errors come up."""

import errno
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image
from programs import TINY, into, rows, run_ranks, same, states, train
from safetensors.torch import load_file

import training.saving
import training.validation
from codec.checkpoint import load_codec
from training.record import Record
from training.writer import MOST, Writer

pytestmark = pytest.mark.slow

STEPS = 8


def words(coco224: Path, folder: Path, *more: object) -> list[object]:
    """8 steps, 6 of them an epoch: checkpoints, two evaluations with reconstructions, every state kept."""
    options = ["--coco_dir", coco224, *TINY, *into(folder), "--checkpoint_every", 2, "--keep_checkpoints", 9]
    return [*options, "--eval_every", 1, "--recon_every", 1, *more]


@pytest.fixture(scope="module")
def undisturbed(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(*words(coco224, folder, "--max_steps", STEPS)) == 0
    return folder


def saved(folder: Path) -> dict[str, Any]:
    """All tensors of a run's files, by file."""
    return {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}


def slow(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Makes a function that writes take a fifth of a second longer, which is a few steps."""
    inner = getattr(module, name)

    def outer(*args: Any) -> None:
        time.sleep(0.2)
        inner(*args)

    monkeypatch.setattr(module, name, outer)


def test_no_rank_waits_for_the_disk_of_one(coco224: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A save on rank 0 is over only when rank 1 has done two more steps; what is saved is as old as its step."""
    run = tmp_path / "run"
    options = words(coco224, run, "--batch_size", 4)
    done = run_ranks(Path(__file__).with_name("slow_disk.py"), tmp_path, STEPS, *options)
    assert done.returncode == 0, done.stderr
    assert [state.name for state in states(run)] == [state.name for state in states(undisturbed)]
    assert [row["step"] for row in rows(run, "validation")] == [6, 8]
    for state in states(run):
        assert load_codec(run / "last.safetensors")[1].step == STEPS
        moments = load_file(state / "optimizer.safetensors")
        assert {int(value) for name, value in moments.items() if name.startswith("step/")} == {int(state.name[-8:])}


def test_a_slow_disk_changes_no_bit_of_a_run_and_its_end_waits_for_it(
    coco224: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, training.saving, "save_state")
    slow(monkeypatch, training.saving, "link_or_copy")
    slow(monkeypatch, training.validation, "write_png")
    assert train(*words(coco224, tmp_path, "--max_steps", STEPS)) == 0
    ours, theirs = saved(tmp_path), saved(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in (tmp_path / "recon").iterdir()} >= {"pre.png", "e001.png", "e002.png"}
    for path in (tmp_path / "recon").rglob("*.png"):
        with Image.open(path) as image:
            image.load()


def test_a_signal_waits_for_what_is_on_its_way(
    coco224: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Record.step

    def told_to_stop(self: Record, number: int, *figures: Any) -> None:
        step(self, number, *figures)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Record, "step", told_to_stop)
    slow(monkeypatch, training.saving, "save_state")
    assert train(*words(coco224, tmp_path, "--max_steps", STEPS)) == 75
    assert [state.name for state in states(tmp_path)] == [f"step-{number:08d}" for number in (2, 4, 5)]
    assert not list(tmp_path.rglob(".*"))
    monkeypatch.undo()
    assert train(*words(coco224, tmp_path, "--max_steps", STEPS)) == 0
    name = f"state/step-{STEPS:08d}/model.safetensors"
    assert same(load_file(tmp_path / name), load_file(undisturbed / name))


def fail(number: int) -> Callable[..., None]:
    def function(*args: Any) -> None:
        raise OSError(number, os.strerror(number), "a file")

    return function


def test_reconstructions_that_a_full_disk_has_no_room_for_are_said_to_be_lost(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.validation, "write_png", fail(errno.ENOSPC))
    assert train(*words(coco224, tmp_path, "--max_steps", 6)) == 0
    said = capsys.readouterr().err
    for name in ("pre", "e001"):
        assert f"disk full: the reconstructions {tmp_path}/recon/{name} was not written (a file)" in said


def test_a_best_file_that_there_was_no_room_for_is_written_when_there_is(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if it is no better than the one that was lost."""
    link = training.saving.link_or_copy
    monkeypatch.setattr(training.saving, "link_or_copy", fail(errno.ENOSPC))
    options = words(coco224, tmp_path, "--lr", 0.1, "--sched", "none")
    assert train(*options, "--max_steps", 1) == 0
    assert "disk full: best_psnr.safetensors was not written" in capsys.readouterr().err
    assert not list(tmp_path.glob("best_*"))
    monkeypatch.setattr(training.saving, "link_or_copy", link)
    assert train(*options, "--max_steps", 2) == 0
    first, second = (row["psnr"] for row in rows(tmp_path, "validation"))
    assert second <= first
    assert load_codec(tmp_path / "best_psnr.safetensors")[1].step == 2


def test_another_error_of_the_disk_ends_the_run(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.saving, "save_state", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        train(*words(coco224, tmp_path, "--max_steps", STEPS))


def test_a_checkpoint_that_is_the_best_is_one_file_of_several_names(undisturbed: Path) -> None:
    """Until the next checkpoint, which leaves the best as it was."""
    metrics = {name: load_codec(undisturbed / f"{name}.safetensors")[1] for name in ("last", "best_rd")}
    assert metrics["last"] == metrics["best_rd"]
    assert (undisturbed / "last.safetensors").samefile(undisturbed / "best_rd.safetensors")


def test_jobs_are_done_in_order_and_only_so_many_wait() -> None:
    writer, go, done = Writer(), Event(), list[int]()

    def job(number: int) -> int:
        assert go.wait(10)
        done.append(number)
        return number

    jobs: list[Future[int]] = [writer.submit(lambda number=number: job(number)) for number in range(MOST)]
    assert done == []
    go.set()
    jobs.append(writer.submit(lambda: job(MOST)))
    assert done[0] == 0
    writer.wait()
    assert [each.result() for each in jobs] == done == list(range(MOST + 1))
    writer.submit(fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        writer.wait()
    writer.close()
