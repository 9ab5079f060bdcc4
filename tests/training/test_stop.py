"""A signal before there is anything to save ends a run within seconds; a stopped tracker does not hold up its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from programs import ROOT, SMALL, TINY, Program, environment, into, run, states, train

import train_accel
from training.outcome import Outcome, Reading
from training.preempt import StopSignal
from training.run import Run

SECONDS = 5.0


DROPPED = """
import os, signal, sys, time, warnings
sys.path.insert(0, sys.argv[1])
from training.preempt import PREEMPTED, Preempted, StopSignal

class Collected:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

stop = StopSignal().install()
stop.start()
try:
    collected = Collected()
    del collected
    try:
        time.sleep(60)
    finally:
        warnings.warn("Error detected in SoftplusBackward0. Traceback of forward call that caused the error")
except Preempted:
    print("stopped by", stop.name)
"""


def stopped(words: list[object], what: str, seconds: float) -> tuple[int, float, str]:
    """Starts a run, waits until it says these words and then for some seconds, and sends SIGTERM.

    Returns:
        Its status, how long it took to stop, and what it said.
    """
    process = Program("train_accel.py", *words)
    while what not in process.said():
        assert process.is_alive(), process.said()
        time.sleep(0.05)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGTERM)
    since = time.monotonic()
    done = process.finish(60)
    return done.returncode, time.monotonic() - since, done.stderr


def test_a_signal_stops_the_distilled_start(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, "--N", 32, "--M", 32, *into(tmp_path / "gdn"), "--act", "gdn"]
    assert train(*words, "--max_steps", 1) == 0
    start = ["--init_checkpoint", tmp_path / "gdn" / "last.safetensors", "--act", "gate", "--distill_steps", 100_000]
    words = ["--coco_dir", coco224, *TINY[len(SMALL) :], *start, *into(tmp_path / "run"), "--num_workers", 0]
    status, seconds, said = stopped(words, "distilled start", 0.3)
    assert (status, "Traceback" in said) == (75, False)
    assert seconds < SECONDS
    assert "stopped by SIGTERM before the first step; run the same command again" in said
    assert not (tmp_path / "run").exists()


def test_a_signal_stops_a_compilation(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--compile", "true"]
    status, seconds, said = stopped(words, "batch       8 x 1", 4.0)
    assert (status, "Traceback" in said) == (75, False)
    assert seconds < SECONDS
    assert "stopped by SIGTERM before the first step; run the same command again" in said
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_signal_stops_the_compilation_of_a_later_phase_with_the_state_before_it(
    compiled: str, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of a step: nothing at first, then a signal in what would be a compilation."""

    def step(run: Run, stop: StopSignal, meanwhile: object) -> Outcome:
        if run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        values = Reading(torch.tensor([0.0, bool(stop.name), 1.0, 1.0, 1.0]))
        return Outcome(run.progress.step + 1, 1e-4, [], ["loss", "bpp", "psnr"], values)

    monkeypatch.setattr(train_accel, "optimizer_step", step)
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--qat", "true", "--qat_calib_steps", 2]
    assert train(*words, "--qat_freeze_after", 4, "--max_steps", 6, "--compile", compiled) == 75
    assert [state.name for state in states(tmp_path)] == ["step-00000002" if compiled == "true" else "step-00000003"]


def test_a_signal_in_a_callback_of_the_garbage_collector_stops_a_run_without_a_traceback() -> None:
    """Python drops an exception there; autograd, in a compilation, warns of one with the traceback of a forward."""
    done = run("-c", DROPPED, ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (75, "stopped by SIGTERM\n", "")


def test_a_stopped_wandb_does_not_hold_up_the_end(coco224: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import training.trackers; training.trackers.LAST_SECONDS = 2\n"
        "from codec.cli import run; import train_accel; run(train_accel.main)"
    )
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--epochs", 10_000, "--wandb", "true"]
    env = environment(WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    env.pop("WANDB_SERVICE", None)  # another test's, which this process would join
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, words)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        record = tmp_path / "run" / "metrics.jsonl"
        while not record.exists() or not record.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        for child in psutil.Process(process.pid).children(recursive=True):
            os.kill(child.pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert "wandb did not end within 2 s and is ended now" in said
    assert "Traceback" not in said
