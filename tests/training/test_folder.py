"""--save_dir: whose its files are, and who writes them."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import TINY, Program, into, rows, same, states, train, weights

from codec.errors import InputError
from training.state import Progress, own_states, save_state

Train = Callable[..., int]


@pytest.fixture(scope="module")
def finished(here: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of two steps left."""
    folder = tmp_path_factory.mktemp("finished")
    assert here(folder, "--max_steps", 2, "--eval_every", 1) == 0
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "again"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_marks_its_folder_and_lets_go_of_it(finished: Path) -> None:
    marker = json.loads((finished / "run.json").read_text())
    progress = json.loads((states(finished)[-1] / "progress.json").read_text())
    assert marker == {"format": "npu-image-codec/run/1", "id": progress["run"], "saved": True, "saving": True}
    assert not [path.name for path in finished.iterdir() if path.name.startswith(".")]


def test_a_start_checkpoint_in_the_folder_is_not_replaced(here: Train, finished: Path, tmp_path: Path) -> None:
    start = tmp_path / "last.safetensors"
    shutil.copy(finished / "last.safetensors", start)
    with pytest.raises(InputError, match=r"holds checkpoints of another run \(last.safetensors\).*--overwrite true"):
        here(tmp_path, "--init_checkpoint", start, "--max_steps", 2)
    assert contents(tmp_path) == {"last.safetensors": start.read_bytes()}
    assert here(tmp_path, "--init_checkpoint", start, "--max_steps", 1, "--overwrite", "true") == 0
    assert here(tmp_path, "--init_checkpoint", start, "--max_steps", 2) == 0  # which is another file by now


def test_a_run_without_its_states_is_not_replaced(here: Train, again: Path) -> None:
    shutil.rmtree(again / "state")
    before = contents(again)
    with pytest.raises(InputError, match=r"best_psnr.safetensors.*no state to resume from.*--overwrite true"):
        here(again, "--max_steps", 2, "--seed", 1)
    assert contents(again) == before


def test_a_run_that_was_killed_in_its_first_save_starts_again(here: Train, again: Path, finished: Path) -> None:
    shutil.rmtree(again / "state")
    marker = json.loads((again / "run.json").read_text())
    assert marker["saving"]
    (again / "run.json").write_text(json.dumps(marker | {"saved": False}))
    for left in (".last.safetensors.partial", ".metrics.jsonl.01234567-1-89abcdef.partial", ".mine.partial"):
        (again / left).write_text("torn")
    assert here(again, "--max_steps", 2, "--eval_every", 1) == 0
    assert same(weights(again), weights(finished))
    assert [path.name for path in again.glob(".*")] == [".mine.partial"]


def test_a_run_of_version_0_1_0_goes_on_and_is_marked(here: Train, again: Path) -> None:
    (again / "run.json").unlink()
    for state in states(again):
        progress = json.loads((state / "progress.json").read_text())
        for name in ("run", "files", "architecture", "validation"):
            del progress[name]
        (state / "progress.json").write_text(json.dumps(progress, indent=1))
        sums = json.loads((state / "manifest.json").read_text())
        sums["progress.json"] = hashlib.sha256((state / "progress.json").read_bytes()).hexdigest()
        (state / "manifest.json").write_text(json.dumps(sums))
    assert here(again, "--max_steps", 3) == 0
    assert [row["step"] for row in rows(again, "train")] == [1, 2, 3]
    assert json.loads((again / "run.json").read_text())["saved"]
    assert [state.name for state in states(again)] == ["step-00000002", "step-00000003"]


def test_a_state_under_another_name_or_of_another_run_is_not_removed(here: Train, again: Path, tmp_path: Path) -> None:
    (newest,) = states(again)
    mine = [newest.with_name(name) for name in ("step-00000002-keep", "step-00000000", "step-00000009")]
    for copy in mine:
        shutil.copytree(newest, copy)
    assert own_states(again / "state") == [newest]
    assert here(again, "--max_steps", 6, "--checkpoint_every", 1) == 0
    assert all(copy.is_dir() for copy in mine)
    assert [path.name for path in own_states(again / "state")] == ["step-00000006", "step-00000005"]


@pytest.mark.parametrize("whose", ["a file", "a dead link"])
def test_the_states_folder_s_name_is_checked_before_the_work(here: Train, tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    if whose == "a file":
        (folder / "state").write_text("mine")
    else:
        (folder / "state").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="state is no folder, and this run saves its states there: move it"):
        here(folder, "--max_steps", 1)
    assert [path.name for path in folder.iterdir()] == ["state"]


@pytest.mark.parametrize("whose", ["another's copy", "empty", "file"])
def test_what_has_a_state_s_name_and_is_none_of_the_run_stays(here: Train, again: Path, whose: str) -> None:
    """Where the run would save it, it is refused before the work."""
    (newest,) = states(again)
    far, near = (newest.with_name(f"step-{step:08d}") for step in (99999999, 3))
    far.mkdir()
    (far / "notes").write_text("mine")
    if whose == "another's copy":
        shutil.copytree(newest, near)
        progress = json.loads((near / "progress.json").read_text())
        (near / "progress.json").write_text(json.dumps(progress | {"step": 3, "run": "0123456789abcdef"}))
    elif whose == "empty":
        near.mkdir()
    else:
        near.write_text("mine")
    before = contents(again)
    with pytest.raises(InputError, match=r"step-00000003 is no state of this run.*: move it to another folder"):
        here(again, "--max_steps", 4, "--checkpoint_every", 1)
    assert contents(again) == before
    progress = Progress(step=3, run=json.loads((again / "run.json").read_text())["id"])
    with pytest.raises(InputError, match="step-00000003 is no state of this run"):
        save_state(again / "state", 2, {}, {}, progress)
    assert contents(again) == before
    shutil.rmtree(near) if near.is_dir() else near.unlink()
    assert here(again, "--max_steps", 4, "--checkpoint_every", 1) == 0
    assert (far / "notes").read_text() == "mine"


def test_the_start_checkpoint_of_a_run_that_saved_nothing_stays(here: Train, again: Path) -> None:
    shutil.rmtree(again / "state")
    marker = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(marker | {"saved": False}))
    start, mine = again / "best_psnr.safetensors", again / "best_mine.safetensors"
    shutil.copy(again / "last.safetensors", start)
    shutil.copy(start, mine)
    before = contents(again)
    with pytest.raises(InputError, match=r"--init_checkpoint .*best_psnr.* has a name that this run would replace"):
        here(again, "--init_checkpoint", start, "--max_steps", 1)
    assert contents(again) == before
    assert here(again, "--init_checkpoint", mine, "--max_steps", 1) == 0
    assert mine.read_bytes() == before["best_mine.safetensors"]


def test_checkpoints_that_a_run_cannot_have_written_are_not_replaced(here: Train, again: Path) -> None:
    shutil.rmtree(again / "state")
    marker = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(marker | {"saved": False, "saving": False}))
    before = contents(again)
    with pytest.raises(InputError, match="holds checkpoints of another run"):
        here(again, "--max_steps", 1)
    assert contents(again) == before


def test_another_start_beside_the_run_is_noticed(here: Train, finished: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(finished / "last.safetensors", start)
    words = ("--init_checkpoint", start, "--max_steps")
    assert here(tmp_path, *words, 1) == 0
    assert here(tmp_path, *words, 2) == 0
    shutil.copy(tmp_path / "last.safetensors", start)
    with pytest.raises(InputError, match=r"--init_checkpoint .*start.safetensors has another content"):
        here(tmp_path, *words, 3)


def test_fifos_in_the_folder_hold_nothing_up(here: Train, again: Path) -> None:
    (newest,) = states(again)
    os.mkfifo(again / "fifo.yaml")
    with pytest.raises(InputError, match=r"--config .*fifo.yaml: not a regular file"):
        here(again, "--config", again / "fifo.yaml")
    for path in (again / "config.yaml", newest.with_name("step-00000001") / "progress.json"):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert here(again, "--max_steps", 3) == 0
    assert (again / "config.yaml").is_fifo()
    (again / "metrics.jsonl").unlink()
    os.mkfifo(again / "metrics.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        here(again, "--max_steps", 4)
    os.mkfifo(again / ".lock")
    with pytest.raises(OSError, match="not a regular file"):
        here(again, "--max_steps", 4)


def test_another_run_s_state_does_not_replace_the_run_in_the_folder(here: Train, again: Path, finished: Path) -> None:
    before = contents(again)
    with pytest.raises(InputError, match="holds checkpoints of another run"):
        here(again, "--resume", finished / "state", "--max_steps", 3)
    assert contents(again) == before


def test_a_config_of_the_user_s_own_stays(
    here: Train, tmp_path: Path, coco224: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "config.yaml"
    mine.write_text("# lr from sweep 17\nlr: 2e-4\n")
    assert here(tmp_path, "--config", mine, "--max_steps", 1) == 0
    assert here(tmp_path, "--config", mine, "--max_steps", 2, "--resume", "auto") == 0
    assert mine.read_text() == "# lr from sweep 17\nlr: 2e-4\n"
    assert "config.yaml is another program's and stays: they are in resolved.yaml" in capsys.readouterr().err
    assert "lr: 0.0002" in (tmp_path / "resolved.yaml").read_text()


def test_a_marker_of_another_program_is_refused(here: Train, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"sweep": 17}')
    with pytest.raises(InputError, match=r"run\.json is damaged or not a file of this program"):
        here(tmp_path, "--max_steps", 1)
    assert contents(tmp_path) == {"run.json": b'{"sweep": 17}'}
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json is damaged or not a file of this program"):
        here(tmp_path, "--max_steps", 1)


def test_a_second_run_in_the_folder_is_refused(coco224: Path, tmp_path: Path) -> None:
    words = ["train_accel.py", "--coco_dir", coco224, *TINY, *into(tmp_path / "run")]
    first = Program(*words, "--epochs", 10_000)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.is_alive(), first.said()
        time.sleep(0.05)
    with pytest.raises(InputError, match="is in use by another run"):
        train(*words[1:], "--max_steps", 2)
    os.kill(first.pid, signal.SIGKILL)
    assert first.finish(60).returncode == -signal.SIGKILL
    assert train(*words[1:], "--max_steps", 2) == 0  # the lock of a killed run holds nobody up


@pytest.mark.parametrize("option", ["--save_dir", "--recon_dir"])
def test_an_output_folder_that_cannot_be_written_is_refused_first(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, why in ((tmp_path / "file", "it is a file"), (Path("/proc/nowhere"), "cannot be written")):
        words = [*TINY, "--coco_dir", tmp_path / "missing", *into(tmp_path / "run"), "--recon_every", 1, option, folder]
        with pytest.raises(InputError, match=re.escape(f"{option} {folder} cannot be written")) as refused:
            train(*words)
        assert why in str(refused.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
