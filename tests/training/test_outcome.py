"""The outcome of a step is read during the next step where a GPU computes; the run is the same."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from programs import TINY, into, rows, same, states, weights
from reads import Reads
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import train_accel
from coco224.batches import can_pin
from training.micro_batches import MicroBatch
from training.optim import apply_unless, make_optimizer
from training.options import parse
from training.outcome import Reading
from training.preempt import StopSignal
from training.run import Run
from training.setup import set_up

pytestmark = pytest.mark.slow

FEW = ("--max_steps", 5, "--checkpoint_every", 99)
QAT = ("--qat", "true", "--qat_scope", "all")


@pytest.mark.parametrize("amp", [("--amp", "false"), ("--amp_dtype", "bf16"), ("--amp_dtype", "fp16")])
def test_a_step_reads_nothing_from_the_device(
    amp: tuple[str, str], coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), *amp, "--grad_accum", 2, "--batch_size", 2]
    run = set_up(parse([str(word) for word in words]))
    train_accel.optimizer_step(run, StopSignal())
    run.progress.step += 1
    with Reads(monkeypatch) as reads:
        train_accel.optimizer_step(run, StopSignal())
    assert reads.found == []


def test_no_phase_of_quantization_reads_from_the_device(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its first step, which sets scales and rounds weights."""
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), *QAT, "--qat_calib_steps", 2]
    run = set_up(parse([str(word) for word in [*words, "--qat_freeze_after", 4]]))
    for _ in range(3):
        train_accel.optimizer_step(run, StopSignal())
        run.progress.step += 1
        with monkeypatch.context() as patched, Reads(patched) as reads:
            train_accel.optimizer_step(run, StopSignal())
        run.progress.step += 1
        assert reads.found == []


class OnGpu(Tensor):
    """Values that say that they are on a GPU."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]


def test_without_page_locked_memory_figures_are_read_from_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, asked = torch.empty, []

    def refuse(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCompile with ...")
        return empty(*shape, **options)

    can_pin.cache_clear()
    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "Event", MagicMock)
    values = torch.tensor([0.0, 1.0, 2.5]).as_subclass(OnGpu)
    with pytest.warns(UserWarning, match="figures are not in page-locked .* CUDA error: out of memory$") as warned:
        assert [Reading(values).values() for _ in range(3)] == [[0.0, 1.0, 2.5]] * 3
    assert (len(warned), asked.count(True)) == (1, 1)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """late(): from now on outcomes are read late on this CPU too."""
    return lambda: monkeypatch.setattr(train_accel, "READ_LATE", ("cpu",))


def recorded(folder: Path) -> list[dict[str, object]]:
    """A run's rows without its speed."""
    kept = [row for kind in ("train", "fault") for row in rows(folder, kind)]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in kept]


@pytest.mark.parametrize("phases", [(), (*QAT, "--qat_calib_steps", 3, "--qat_freeze_after", 4)], ids=["float", "qat"])
def test_a_faulty_step_that_is_noticed_late_is_skipped_and_reported_like_one_that_is_noticed_at_once(
    phases: tuple[object, ...], poisoned: Callable[..., int], tmp_path: Path, late: Callable[[], None]
) -> None:
    """With quantization the second fault is in the last step that learns ranges."""
    words = (*FEW, *phases, "--poisoned_first", 2, "--poisoned_last", 3)
    assert poisoned(*words) == 0
    (tmp_path / "run").rename(tmp_path / "at once")
    late()
    assert poisoned(*words) == 0
    assert recorded(tmp_path / "run") == recorded(tmp_path / "at once")
    assert [row["step"] for row in rows(tmp_path / "run", "fault")] == [2, 3]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "at once"))


def test_the_run_ends_at_the_step_that_exhausts_its_patience(
    poisoned: Callable[..., int], tmp_path: Path, late: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    late()
    assert poisoned(*FEW, "--poisoned_first", 2, "--overflow_patience", 3) == 3
    assert [state.name[-1] for state in states(tmp_path / "run")] == ["4"]
    assert [row["module"] for row in rows(tmp_path / "run", "fault")] == ["g_a.3 (Poisoned), forward"] * 3
    assert "error: 3 faulty steps in a row (--overflow_patience)" in capsys.readouterr().err


def test_a_signal_stops_the_run_a_step_later_and_the_resumed_run_is_the_whole_one(
    here: Callable[..., int], tmp_path: Path, late: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here(tmp_path / "whole", *FEW) == 0
    late()
    forward = train_accel.forward

    def stopped(run: Run, model: nn.Module, batch: MicroBatch) -> object:
        if run.progress.step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(run, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(train_accel, "forward", stopped)
        assert here(tmp_path / "run", *FEW) == 75
    assert [state.name[-1] for state in states(tmp_path / "run")] == ["3"]
    assert here(tmp_path / "run", *FEW) == 0
    assert recorded(tmp_path / "run") == recorded(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_fault_leaves_weights_and_optimizer_state_as_they_are(scaled: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, "adam", 1e-2, 0.0, 1e-2)
    scaler = GradScaler("cpu", init_scale=4.0, enabled=scaled)

    def step(fault: float, gradient: float = 1.0) -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        apply_unless(torch.tensor(fault), optimizer, scaler)
        scaler.update()
        state = [tensor for values in optimizer.state.values() for tensor in values.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *state)]

    first = step(0.0)
    assert all(map(torch.equal, step(1.0), first))
    assert all(map(torch.equal, step(1.0, float("nan")), first))
    if scaled:  # an overflow of the scaler's own
        assert all(map(torch.equal, step(0.0, float("inf")), first))
    assert not any(map(torch.equal, step(0.0), first))
