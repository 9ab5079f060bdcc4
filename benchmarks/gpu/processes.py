"""Processes that a part starts: training commands, the ranks of a run, launchers."""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.gpu.runs import logged
from benchmarks.gpu.setting import Setting, train
from benchmarks.harness import ROOT

CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
"""Variables of a process that must not use a GPU."""

KILL_SECONDS = 10.0
"""How long a killed process may take to end."""


def start(function: Callable[..., int | None], *args: Any, log: Path, **environment: str) -> BaseProcess:
    """Starts a function of a module in a process of its own, which ends with the status that the function returns.

    Without a GPU the process is a fork, which need not import anything again: a part that starts processes must not
    compute before. CUDA does not survive a fork.

    Args:
        log: the file to which its output is appended.
        environment: variables of the process.
    """
    spawns = torch.cuda.is_available()
    context = multiprocessing.get_context("spawn") if spawns else multiprocessing.get_context("fork")
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_enter, args=(log, function, args))
    with variables(**environment):
        process.start()
    return process


def _enter(log: Path, function: Callable[..., int | None], args: tuple[Any, ...]) -> None:
    sys.stdout = sys.stderr = file = log.open("a", buffering=1)
    for descriptor in (1, 2):  # for what writes without Python
        os.dup2(file.fileno(), descriptor)
    sys.exit(function(*args))


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Sets environment variables inside this context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def start_run(setting: Setting, name: str, *options: object, **environment: str) -> BaseProcess:
    """Starts the training command; the run's name is that of its folder and of its log."""
    return start(train, setting.words(name, *options), log=setting.folder / f"{name}.log", **environment)


def start_ranks(
    setting: Setting, name: str, function: Callable[..., int | None], *args: Any, ranks: int = 2
) -> list[BaseProcess]:
    """Starts a function on several ranks, as a launcher would: over NCCL, on CPUs over gloo."""
    size = str(ranks)
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start(
            function,
            *args,
            log=setting.folder / f"{name}.rank{rank}.log",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **common,
        )
        for rank in range(ranks)
    ]


def free_port() -> str:
    """A port on which nothing listens; parts that run at once need one each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def ended(process: BaseProcess) -> int:
    """Waits for the end of a process; returns its status, negative for a signal."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def succeed(*processes: BaseProcess) -> None:
    """Waits for the end of processes.

    Raises:
        RuntimeError: one ended with another status than 0; the others may be waiting for it.
    """
    while True:
        statuses = [process.exitcode for process in processes]
        if failed := [status for status in statuses if status]:
            raise RuntimeError(f"a process of the part ended with status {failed[0]}")
        if None not in statuses:
            return
        time.sleep(0.01)


def launch(setting: Setting, configuration: str, processes: int, words: list[str]) -> BaseProcess:
    """Starts the training command under Accelerate's launcher with a file of accelerate_configs/."""
    launcher = ["--config_file", str(ROOT / "accelerate_configs" / configuration), "--num_processes", str(processes)]
    launcher += ["--main_process_port", free_port(), str(ROOT / "train_accel.py"), *words]
    return start(_be_launcher, launcher, log=setting.folder / "launcher.log")


def _be_launcher(words: list[str]) -> None:
    """What `accelerate launch` does with these words."""
    from accelerate.commands.launch import main

    sys.argv[1:] = words
    main()


def wait_for_step(folder: Path, step: int, alive: Callable[[], bool]) -> None:
    """Waits until a run has logged this step.

    Raises:
        RuntimeError: the run ended before.
    """
    while not any(row["step"] >= step for row in logged(folder)):
        if not alive():
            raise RuntimeError(f"the run {folder.name} did not come to step {step}")
        time.sleep(0.01)


def kill_tree(pid: int) -> None:
    """Kills a process and everything that it started."""
    kill_children(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()


def kill_children(pid: int) -> None:
    """Kills everything that a process started, also in sessions of its own, and waits for its end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        processes = psutil.Process(pid).children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        end = time.monotonic() + KILL_SECONDS
        while any(map(_runs, processes)) and time.monotonic() < end:
            time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """Whether it still holds its memory; a zombie waits only for its parent to ask for its status."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
