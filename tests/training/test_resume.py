"""A run that is interrupted, moved or asked again ends with the weights of one that was left alone."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import ROUNDING, TINY, distance, into, rows, same, states, train, weights
from safetensors.torch import load_file

from codec.errors import InputError
from training.options import parse
from training.resume import DataIdentity, require_agreement
from training.state import Progress, Saved, load_state

pytestmark = pytest.mark.slow

Train = Callable[..., int]


@pytest.fixture(scope="module")
def undisturbed(here: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps, two epochs, in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert here(folder, "--max_steps", 12) == 0
    return folder


@pytest.fixture(scope="module")
def halfway(here: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first 7 steps, with states at 4, 6 (the end of the epoch) and 7."""
    folder = tmp_path_factory.mktemp("halfway")
    assert here(folder, "--max_steps", 7, "--checkpoint_every", 4, "--keep_checkpoints", 3) == 0
    assert [state.name for state in states(folder)] == ["step-00000004", "step-00000006", "step-00000007"]
    return folder


@pytest.fixture
def again(halfway: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with."""
    for file in filter(Path.is_file, halfway.rglob("*")):
        copy = tmp_path / file.relative_to(halfway)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path


def everything(folder: Path) -> dict:
    state = states(folder)[-1]
    return load_file(state / "model.safetensors") | load_file(state / "optimizer.safetensors")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_longer_run_goes_on_bit_for_bit_with_any_number_of_workers(
    num_workers: int, here: Train, again: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(again, "--max_steps", 12, "--num_workers", num_workers) == 0
    assert "resumes     at step 7" in capsys.readouterr().err
    assert same(everything(again), everything(undisturbed))
    assert [row["step"] for row in rows(again, "train")] == list(range(1, 13))


def test_channels_last_weights_resume_with_their_own_moments(here: Train, tmp_path: Path) -> None:
    """Fused Adam pairs values by their place in memory: other strides would give a weight another's moments."""
    for folder, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        assert here(tmp_path / folder, "--max_steps", steps, "--channels_last", "true", "--lr", 1e-2) == 0
    assert same(everything(tmp_path / "parts"), everything(tmp_path / "whole"))


def test_the_plateau_schedule_resumes_with_its_memory(here: Train, tmp_path: Path) -> None:
    """A learning rate that is far too small never improves, so the rate is halved after the third bad epoch."""
    words = ["--sched", "plateau", "--lr", 1e-12, "--eval_every", 1, "--batch_size", 54]
    for folder, epochs in (("whole", 6), ("parts", 3), ("parts", 6)):
        assert here(tmp_path / folder, *words, "--epochs", epochs) == 0
    rates = [row["lr"] for row in rows(tmp_path / "whole", "train")]
    assert rates == [1e-12] * 4 + [0.5e-12] * 2
    assert [row["lr"] for row in rows(tmp_path / "parts", "train")] == rates
    assert same(everything(tmp_path / "parts"), everything(tmp_path / "whole"))


def test_a_finished_run_says_so_and_changes_nothing(
    here: Train, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in again.rglob("*.safetensors")}
    record = rows(again, "train")
    assert here(again, "--max_steps", 7) == 0
    assert "finished    all 7 steps are done; give more --epochs or --max_steps to continue" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in again.rglob("*.safetensors")} == before
    assert rows(again, "train") == record


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--lr", 2e-4, "--lr 0.0001 there, 0.0002 here"),
        ("--seed", 1, "--seed 0 there, 1 here"),
        ("--act", "gate", "--act relu there, gate here"),
        ("--train_scope", "all", "--train_scope replaced+hyper there, all here"),
        ("--loss_type", "rd", "--loss_type mse there, rd here"),
        ("--sched", "cosine", "--sched none there, cosine here"),
        ("--hflip", "true", "--hflip false there, true here"),
    ],
)
def test_another_setting_is_refused_by_name_and_nothing_is_touched(
    option: str, value: object, says: str, here: Train, halfway: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in halfway.rglob("*")}
    words = ["--input_size", 176] if value == "rd" else []
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        here(halfway, "--max_steps", 12, option, value, *words)
    assert str(halfway) in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in halfway.rglob("*")} == files


def test_a_block_s_own_option_is_part_of_the_model(here: Train, tmp_path: Path) -> None:
    assert here(tmp_path, "--act", "gdnish", "--max_steps", 1) == 0
    with pytest.raises(InputError, match=re.escape("--enc_t 2.0 there, 1.5 here")):
        here(tmp_path, "--act", "gdnish", "--enc_t", 1.5, "--max_steps", 2)


def test_another_dataset_is_refused(halfway: Path, tmp_path: Path) -> None:
    from programs import run

    words = ("--coco_dir", "sample", "--out_dir", tmp_path / "other", "--crop", "center")
    assert run("-m", "coco224.prepare", *words).returncode == 0
    with pytest.raises(InputError, match="another dataset"):
        train("--coco_dir", tmp_path / "other", *TINY, *into(halfway), "--max_steps", 12, "--batch_size", 2)


def test_another_validation_split_is_refused_where_figures_would_be_compared() -> None:
    options = parse(["--coco_dir", "x"])
    of_plateau = parse(["--coco_dir", "x", "--sched", "plateau"])
    assert "eval_every" in of_plateau.deciding()
    assert "eval_every" not in options.deciding()
    same_rows = DataIdentity("rows", "now")
    for then, best, refused in (("then", {"psnr": 1.0}, True), ("then", {}, False), ("", {"psnr": 1.0}, False)):
        saved = Progress(options=options.flat(), data="rows", validation=then, best=best)
        with pytest.raises(InputError, match="another validation split") if refused else contextlib.nullcontext():
            require_agreement(saved, options, same_rows, {}, in_place=True)


def test_resume_none_refuses_a_folder_that_holds_a_run_unless_it_may_overwrite(
    here: Train, again: Path, undisturbed: Path
) -> None:
    (again / "notes.txt").write_text("mine")
    before = weights(again)
    with pytest.raises(InputError, match=re.escape("--resume none --overwrite true")):
        here(again, "--max_steps", 12, "--resume", "none")
    assert same(weights(again), before)
    assert here(again, "--max_steps", 12, "--resume", "none", "--overwrite", "true") == 0
    assert [state.name for state in states(again)] == ["step-00000006", "step-00000012"]
    assert same(everything(again), everything(undisturbed))
    assert [row["step"] for row in rows(again, "train")] == list(range(1, 13))
    assert (again / "notes.txt").read_text() == "mine"


def test_overwriting_loses_nothing_when_the_new_run_cannot_start(here: Train, again: Path, tmp_path: Path) -> None:
    words = ["--resume", "none", "--overwrite", "true", "--max_steps", 12]
    with pytest.raises(InputError, match="no such file"):
        here(again, *words, "--init_checkpoint", tmp_path / "missing.safetensors")
    assert len(states(again)) == 3
    # The new run may start from a checkpoint of the old one.
    assert here(again, *words, "--init_checkpoint", again / "last.safetensors", "--act", "relu") == 0


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_newest_state_is_named_and_the_one_before_is_used(
    name: str, here: Train, again: Path, undisturbed: Path
) -> None:
    newest = states(again)[-1]
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(f"{newest} is damaged")):
        assert here(again, "--max_steps", 12) == 0
    assert same(everything(again), everything(undisturbed))
    assert [row["step"] for row in rows(again, "train")] == list(range(1, 13))


def test_a_run_whose_states_are_all_damaged_does_not_begin_anew_by_itself(here: Train, again: Path) -> None:
    for state in states(again):
        (state / "model.safetensors").write_bytes(b"")
    last = (again / "last.safetensors").read_bytes()
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(InputError, match="--overwrite true"):
        here(again, "--max_steps", 12)
    assert (again / "last.safetensors").read_bytes() == last


def test_what_was_recorded_after_the_state_is_recorded_once(here: Train, again: Path, undisturbed: Path) -> None:
    """A kill: the record is ahead of the newest state, and its last line is torn."""
    for state in states(again)[1:]:
        for file in state.iterdir():
            file.unlink()
        state.rmdir()
    with (again / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert here(again, "--max_steps", 12) == 0
    assert [row["step"] for row in rows(again, "train")] == list(range(1, 13))
    losses = [[row["loss"] for row in rows(folder, "train")] for folder in (again, undisturbed)]
    assert losses[0] == losses[1]


def test_a_state_is_resumed_into_another_folder(here: Train, halfway: Path, tmp_path: Path, undisturbed: Path) -> None:
    assert here(tmp_path, "--max_steps", 12, "--resume", halfway / "state") == 0
    assert same(everything(tmp_path), everything(undisturbed))
    assert len(states(halfway)) == 3
    with pytest.raises(InputError, match=re.escape(f"--resume {halfway / 'nowhere'} holds no state")):
        here(tmp_path, "--resume", halfway / "nowhere")


def test_in_another_folder_it_keeps_best_files_of_its_own(
    here: Train, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_better_one(path: Path) -> Saved:
        saved = load_state(path)
        saved.progress.best = {"rd": -1e9}
        return saved

    monkeypatch.setattr("training.resume.load_state", with_a_better_one)
    assert here(tmp_path, "--max_steps", 12, "--eval_every", 1, "--resume", halfway / "state") == 0
    assert (tmp_path / "best_rd.safetensors").exists()


def test_a_smaller_batch_keeps_the_global_batch_by_accumulating(
    here: Train, again: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(again, "--max_steps", 12, "--batch_size", 2) == 0
    assert "2 x 4 accumulated x 1 process = 8" in capsys.readouterr().err
    assert distance(weights(undisturbed), weights(again)) < ROUNDING


def test_a_global_batch_that_cannot_be_kept_is_refused_with_those_that_can(here: Train, halfway: Path) -> None:
    with pytest.raises(InputError, match=r"8 pictures per optimizer step.*--batch_size 3.*use --batch_size 1, 2, 4, 8"):
        here(halfway, "--max_steps", 12, "--batch_size", 3)


def test_accumulated_batches_train_as_one(here: Train, tmp_path: Path) -> None:
    for batch_size in (8, 4, 2):
        words = ["--batch_size", batch_size, "--grad_accum", 8 // batch_size, "--train_scope", "all"]
        assert here(tmp_path / str(batch_size), *words, "--replace_parts", "all", "--max_steps", 10) == 0
    for a, b in itertools.pairwise(("8", "4", "2")):
        assert distance(weights(tmp_path / a), weights(tmp_path / b)) < ROUNDING


def test_fp16_and_its_loss_scaler_work_with_clipping_accumulation_and_resume(here: Train, tmp_path: Path) -> None:
    words = ["--amp", "true", "--amp_dtype", "fp16", "--batch_size", 4, "--grad_accum", 2]
    assert here(tmp_path / "whole", *words, "--max_steps", 8) == 0
    for steps in (4, 8):
        assert here(tmp_path / "halves", *words, "--max_steps", steps) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    progress = load_state(states(tmp_path / "halves")[-1]).progress
    assert progress.scaler["_growth_tracker"] == 8  # eight good steps at this scale, none skipped
    assert rows(tmp_path / "whole", "fault") == []


@pytest.fixture
def started(here: Train, tmp_path: Path) -> tuple[Path, Path]:
    """A run from a checkpoint, and the checkpoint."""
    assert here(tmp_path / "first", "--max_steps", 1, "--act", "gdn") == 0
    start = tmp_path / "first" / "last.safetensors"
    assert here(tmp_path / "run", "--max_steps", 2, "--init_checkpoint", start) == 0
    return tmp_path / "run", start


def test_a_resumed_run_needs_neither_its_first_weights_nor_their_place(
    here: Train, started: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, start = started
    moved = start.rename(tmp_path / "moved.safetensors")
    assert here(folder, "--max_steps", 3, "--init_checkpoint", moved) == 0
    moved.unlink()
    assert here(folder, "--max_steps", 4, "--init_checkpoint", start) == 0
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4]


def test_other_first_weights_are_refused(here: Train, started: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = started
    assert here(tmp_path / "second", "--max_steps", 1, "--act", "gdn", "--seed", 1) == 0
    other = tmp_path / "second" / "last.safetensors"
    with pytest.raises(InputError, match=re.escape(f"--init_checkpoint {other} has another content")):
        here(folder, "--max_steps", 3, "--init_checkpoint", other)
    with pytest.raises(InputError, match=r"--init_checkpoint .*last.safetensors there, absent here"):
        here(folder, "--max_steps", 3)


def test_another_plugin_is_refused(here: Train, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(LEAKY)
    words = ["--plugin", plugin, "--act", "leaky"]
    assert here(tmp_path / "run", *words, "--max_steps", 1) == 0
    plugin.write_text(LEAKY.replace("0.1", "0.2"))
    with pytest.raises(InputError, match=re.escape(f"--plugin {plugin} has another content")):
        here(tmp_path / "run", *words, "--max_steps", 2)


def test_a_missing_first_checkpoint_is_named_with_its_option(here: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"--init_checkpoint {tmp_path / 'no.pth.tar'}: no such file")):
        here(tmp_path / "run", "--init_checkpoint", tmp_path / "no.pth.tar")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match=re.escape(f"--init_checkpoint {tmp_path / 'fifo'}: not a regular file")):
        here(tmp_path / "run", "--init_checkpoint", tmp_path / "fifo")


LEAKY = """
from torch import nn
from codec.blocks import register_activation

@register_activation("leaky")
class Leaky:
    @staticmethod
    def encoder(channels, options): return nn.LeakyReLU(0.1)
    @staticmethod
    def decoder(channels, options): return nn.LeakyReLU(0.1)
"""


def test_a_run_in_bf16_goes_on_in_fp16_and_back(here: Callable[..., int], tmp_path: Path) -> None:
    """fp16 has a loss scaler, whose state a run in bf16 does not have."""
    for step, dtype in enumerate(("bf16", "fp16", "fp16", "bf16"), 1):
        assert here(tmp_path, "--amp", "true", "--amp_dtype", dtype, "--max_steps", step) == 0
    assert [row["step"] for row in rows(tmp_path, "train")] == [1, 2, 3, 4]
