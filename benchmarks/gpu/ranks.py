"""Two GPUs against one: the same run, its ranges, its end by a signal or a kill, its continuation on one GPU."""

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import psutil

from benchmarks.gpu.processes import (
    ended,
    kill_tree,
    launch,
    start_ranks,
    start_run,
    succeed,
    wait_for_step,
)
from benchmarks.gpu.runs import distance, largest_change, logged, losses, state
from benchmarks.gpu.setting import Setting, train
from benchmarks.gpu.standins import train_sharded
from benchmarks.harness import ROOT, Row
from training.preempt import PREEMPTED

AT = 3
FOR_EVER = 1_000_000
SUMS, ROUNDED = 1e-4, 1e-3
"""Largest relative difference of runs in FP32 whose sums differ in order; the same with fake quantization."""

FP32 = ("--act", "relu", "--loss_type", "mse", "--amp", "false")
RANGES = (".low", ".high")


def ddp(setting: Setting) -> Iterator[Row]:
    """Some steps in FP32 with the same global batch, compiled where that is the default."""
    yield from _against_one(setting, "DDP, relu, FP32", SUMS, *FP32)


def ddp_qat(setting: Setting) -> Iterator[Row]:
    """Quantization-aware training through its phases: the ranges are those of the global batch."""
    yield from _against_one(setting, "DDP, relu, QAT", ROUNDED, *FP32, *setting.qat(), "--compile", "false")
    one, two = (
        {name: tensor for name, tensor in state(setting.folder / run).items() if name.endswith(RANGES)}
        for run in ("one", "two")
    )
    assert one, "no ranges in the state"
    yield Row("DDP, relu, QAT: largest relative difference of a range", distance(two, one), "of it", at_most=ROUNDED)


def _against_one(setting: Setting, what: str, limit: float, *options: object) -> Iterator[Row]:
    one = start_run(setting, "one", *options, "--max_steps", setting.steps)
    succeed(one, *start_ranks(setting, "two", train, _halved(setting, "two", *options, "--max_steps", setting.steps)))
    yield _agreement(setting, f"{what}, two ranks against one: losses of {setting.steps} steps", "two", "one", limit)


def _halved(setting: Setting, name: str, *options: object) -> list[str]:
    """The command line of a rank of two: half the pictures, so that the global batch stays."""
    return setting.words(name, *options, "--batch_size", setting.batch_size // 2)


def _agreement(setting: Setting, what: str, run: str, other: str, limit: float = SUMS) -> Row:
    ours, theirs = (losses(setting.folder / name) for name in (run, other))
    change = largest_change(ours, theirs[-len(ours) :])
    return Row(f"{what}, largest relative difference", change, "of it", at_most=limit, sides={"last loss": ours[-1]})


def one_rank_told(setting: Setting) -> Iterator[Row]:
    """SIGUSR1 to rank 1 alone: both ranks save the same step and end."""
    words = _halved(setting, "told", *FP32, "--compile", "false", "--max_steps", FOR_EVER)
    ranks = start_ranks(setting, "told", train, words)
    wait_for_step(setting.folder / "told", AT, ranks[1].is_alive)
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGUSR1)
    for rank, process in enumerate(ranks):
        what = f"SIGUSR1 to rank 1 alone: exit status of rank {rank}"
        yield Row(what, ended(process), "", at_least=PREEMPTED, at_most=PREEMPTED)
    saved = sorted((setting.folder / "told" / "state").glob("step-*"))[-1].name
    last = logged(setting.folder / "told")[-1]["step"]
    yield Row("steps between the last one and the saved state", last - int(saved.removeprefix("step-")), "", at_most=0)


def one_rank_killed(setting: Setting) -> Iterator[Row]:
    """SIGKILL to rank 1 under Accelerate's launcher, which must not leave rank 0 waiting for it."""
    words = _halved(setting, "killed", *FP32, "--compile", "false", "--max_steps", FOR_EVER)
    launcher = launch(setting, "ddp.yaml", 2, words)
    try:
        assert launcher.pid is not None
        wait_for_step(setting.folder / "killed", AT, launcher.is_alive)
        _rank_of(launcher.pid, 1).kill()
        start = time.monotonic()
        status = ended(launcher)
        yield Row("time from a killed rank to the launcher's end", time.monotonic() - start, "s", at_most=60)
        yield Row("exit status of the launcher after that", status, "", at_least=1)
    finally:
        _kill(launcher)


def _kill(launcher: BaseProcess) -> None:
    assert launcher.pid is not None
    kill_tree(launcher.pid)


def _rank_of(launcher: int, rank: int) -> psutil.Process:
    for process in psutil.Process(launcher).children(recursive=True):
        if process.environ().get("RANK") == str(rank) and str(ROOT / "train_accel.py") in process.cmdline():
            return process
    raise RuntimeError(f"the launcher has no rank {rank}")


def resume_on_one(setting: Setting) -> Iterator[Row]:
    """A state that two ranks saved goes on in one process, as a run of one process would."""
    options, half = (*FP32, "--compile", "false"), setting.steps // 2
    one = start_run(setting, "one", *options, "--max_steps", setting.steps)
    succeed(*start_ranks(setting, "half", train, _halved(setting, "half", *options, "--max_steps", half)))
    onward = ("--max_steps", setting.steps, "--resume", setting.folder / "half" / "state")
    succeed(one, start_run(setting, "onward", *options, *onward))
    yield _agreement(setting, f"from two ranks to one after {half} steps: losses of the rest", "onward", "one")


def sharded_on_one(setting: Setting) -> Iterator[Row]:
    """FSDP2 at world size 1 against a run that is not sharded."""
    yield from _sharded(setting, 1, "--act", "relu", "--loss_type", "mse")


def sharded_on_two(setting: Setting) -> Iterator[Row]:
    """FSDP2 with GDNishLite, whose small parameters leave a rank with empty shards."""
    yield from _sharded(setting, 2, "--act", "gdnish", "--loss_type", "mse")


def _sharded(setting: Setting, processes: int, *options: object) -> Iterator[Row]:
    options = (*options, "--amp", "false", "--channels_last", "false", "--max_steps", setting.steps)
    one = start_run(setting, "one", *options, "--compile", "false")
    batch = ("--batch_size", setting.batch_size // processes)
    words = setting.words("sharded", *options, *batch)
    if setting.device == "cuda":
        launcher = launch(setting, "fsdp.yaml", processes, words)
        try:
            status = ended(launcher)
        finally:
            _kill(launcher)
    else:
        status = max(map(ended, start_ranks(setting, "sharded", train_sharded, words, ranks=processes)))
    succeed(one)
    yield Row(f"exit status of FSDP2 on {processes}", status, "", at_most=0)
    yield _agreement(
        setting, f"FSDP2 on {processes} against one process: losses of {setting.steps} steps", "sharded", "one"
    )
