"""A disk that fills during a save costs that save alone: the state before it loads, and the run goes on or stops."""

import re
import subprocess
from pathlib import Path

import pytest
from programs import TINY, into, rows, same, states, train, weights
from torch import Tensor

from codec.checkpoint import load_codec
from codec.cli import run as run_command
from codec.errors import InputError
from training.record import Record
from training.state import load_state, newest_whole

pytestmark = pytest.mark.slow

# kB of disk. A state takes 132, last.safetensors 80 and as much again while it is written, what is recorded 8: so they
# fill at another byte of step 2's (up to 340) or of step 3's save, in each of its files.
SIZES = (230, 260, 290, 310, 330, 380, 420, 440, 460, 472)
STEPS = 3


@pytest.fixture(scope="module")
def undisturbed(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = ["--coco_dir", coco224, *TINY, *into(folder), "--max_steps", STEPS, "--checkpoint_every", 1]
    assert train(*words, "--keep_checkpoints", 9) == 0
    return folder


@pytest.fixture
def disk(small_disk: Path) -> Path:
    """A disk of 1 MB, whose size `resize` sets."""
    resize(small_disk, 1024)
    return small_disk


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def words(coco224: Path, disk: Path, full_disk: str) -> list[object]:
    """Three steps, each saved."""
    options = ["--coco_dir", coco224, *TINY, *into(disk / "run"), "--max_steps", STEPS, "--checkpoint_every", 1]
    return [*options, "--full_disk", full_disk]


def last_good(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Name and tensors of the state that a restart uses."""
    found = newest_whole(folder / "state")
    assert found
    saved = load_state(found)
    return found.name, saved.model | saved.optimizer


@pytest.mark.filterwarnings("error:.*is damaged")
@pytest.mark.parametrize("kilobytes", SIZES)
def test_a_full_disk_keeps_the_last_good_checkpoint(
    kilobytes: int, coco224: Path, disk: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(disk, kilobytes)
    with pytest.raises(InputError, match=r"the disk of --save_dir .* is full at step 3; .* make room"):
        train(*words(coco224, disk, "continue"))
    good = 1 if kilobytes < 340 else 2
    name, tensors = last_good(disk / "run")
    assert name == f"step-{good:08d}"
    saved = load_state(undisturbed / "state" / name)
    assert same(tensors, saved.model | saved.optimizer)
    load_codec(disk / "run" / "last.safetensors")
    said = re.findall(r"disk full: the checkpoint of step (\d) was not written", capsys.readouterr().err)
    assert sorted(set(said)) == ["1", "2", "3"][good:]
    assert not list((disk / "run").rglob(".*"))


def test_training_goes_on_and_saves_again_when_there_is_room(
    coco224: Path, disk: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def make_room_when_told(record: Record, line: str) -> None:
        said.append(line)
        if line.startswith("disk full: the checkpoint of step 2"):
            resize(disk, 2000)

    monkeypatch.setattr(Record, "say", make_room_when_told)
    resize(disk, SIZES[0])
    assert train(*words(coco224, disk, "continue")) == 0
    assert len([line for line in said if line.startswith("disk full")]) == 1
    assert same(weights(disk / "run"), weights(undisturbed))
    assert [state.name for state in states(disk / "run")] == ["step-00000001", "step-00000003"]
    assert [row["step"] for row in rows(disk / "run", "train")] == [1, 2, 3]


@pytest.mark.parametrize("kilobytes", [SIZES[0], SIZES[-1]])
def test_stop_ends_in_one_line_and_the_same_command_goes_on_when_there_is_room(
    kilobytes: int, coco224: Path, disk: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(disk, kilobytes)
    command = words(coco224, disk, "stop")
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: train(*command))
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    step = 2 if kilobytes == SIZES[0] else 3
    assert len(errors) == 1
    assert f"is full at step {step}; the previous state is intact: make room" in errors[0]

    resize(disk, 2000)
    assert train(*command) == 0
    assert same(last_good(disk / "run")[1], last_good(undisturbed)[1])
    assert [row["step"] for row in rows(disk / "run", "train")] == [1, 2, 3]


def test_a_disk_that_is_full_before_the_first_state_says_so(coco224: Path, disk: Path) -> None:
    resize(disk, 120)
    with pytest.raises(InputError, match="is full at step 1"):
        train(*words(coco224, disk, "stop"))
    assert newest_whole(disk / "run" / "state") is None
