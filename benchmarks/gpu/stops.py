"""A run that a signal stops and the same command continues, against one that was left alone."""

import os
import signal
from collections.abc import Iterator

from benchmarks.gpu.processes import ended, start_run, succeed, wait_for_step
from benchmarks.gpu.runs import differing, state
from benchmarks.gpu.setting import Setting
from benchmarks.harness import Row
from training.preempt import PREEMPTED

STEPS, TINY_STEPS = 200, 30
AT = 3


def stop_and_resume(setting: Setting) -> Iterator[Row]:
    """SIGTERM, status 75, the same command again; then every bit of the state is compared."""
    steps = TINY_STEPS if setting.tiny else STEPS
    options = ("--act", "relu", "--loss_type", "mse", "--max_steps", steps)
    alone, stopped = (start_run(setting, name, *options) for name in ("alone", "stopped"))
    wait_for_step(setting.folder / "stopped", AT, stopped.is_alive)
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGTERM)
    status = ended(stopped)
    yield Row("exit status of a run after SIGTERM", status, "", at_least=PREEMPTED, at_most=PREEMPTED)
    succeed(alone, start_run(setting, "stopped", *options))
    names = differing(state(setting.folder / "alone"), state(setting.folder / "stopped"))
    yield Row(
        f"tensors that differ after {steps} steps with a stop and a resume, bit by bit",
        len(names),
        "tensors",
        at_most=0,
        note=", ".join(names[:3]),
    )
