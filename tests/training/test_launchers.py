"""A signal to a launcher of two ranks reaches a checkpoint of the step that was under way."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import DDP, ROOT, TINY, environment, into, rows, states

from training.preempt import PREEMPTED
from training.state import newest_whole

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file", str(DDP)],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
}
# Torch's launcher hands on TERM and INT by itself, USR1 only where it is told to.
HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.mark.parametrize(
    ("launcher", "name"),
    [("accelerate", "SIGTERM"), ("accelerate", "SIGINT"), ("accelerate", "SIGUSR1"), ("torchrun", "SIGTERM")],
)
def test_a_signal_to_the_launcher_ends_in_a_checkpoint(launcher: str, name: str, coco224: Path, tmp_path: Path) -> None:
    """Accelerate's launcher calls torchrun's, which hands on every signal alike."""
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--batch_size", 4, "--epochs", 10_000]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *LAUNCHERS[launcher], "train_accel.py", *map(str, words)],
            cwd=ROOT,
            env=environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", PET_SIGNALS_TO_HANDLE=HANDLED),
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 240
        # after two steps: a rank that is still in the first one may stop without a state
        while not (tmp_path / "metrics.jsonl").exists() or len(rows(tmp_path, "train")) < 2:
            assert started.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started.send_signal(signal.Signals[name])
        started.wait(60)

    last = rows(tmp_path, "train")[-1]["step"]
    assert newest_whole(tmp_path / "state") == states(tmp_path)[-1]
    assert states(tmp_path)[-1].name == f"step-{last:08d}"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["processes"]) == (PREEMPTED, last, 2)
    assert f"stopped by a signal at step {last}" in (tmp_path / "log").read_text()
