"""Running the programs, as processes or inside the test, and reading what a training run left."""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent.parent
DDP = ROOT / "accelerate_configs" / "ddp.yaml"
FSDP = ROOT / "accelerate_configs" / "fsdp.yaml"
DDP_NODES = ROOT / "accelerate_configs" / "ddp_nodes.yaml"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SMALL = ["--pretrained", "false", "--N", "8", "--M", "12", "--num_workers", "0"]
TINY = [
    *SMALL,
    *["--batch_size", "8", "--loss_type", "mse", "--input_size", "64", "--amp", "false", "--sched", "none"],
    *["--recon_every", "0", "--eval_every", "0", "--log_every", "1"],
]
"""Options of a run that takes 30 ms a step, in FP32; the embedded photographs are 6 steps an epoch."""


ROUNDING = 1e-5
"""`distance` of two runs of some ten steps that differ in the order of their sums alone.

Last bits make 1e-7 of it. Where they decide on which side of zero the input of a ReLU or of an L1 distance lies, a
gradient jumps, and weights with it by some 1e-6. Noise, pictures or ranges that depend on the rank make 1e-3 and more
in a step.
"""


def environment(**more: str) -> dict[str, str]:
    """Of a process: one thread, so that its arithmetic is the same everywhere, and no network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


PREPARED = multiprocessing.get_context("forkserver")
PREPARED.set_forkserver_preload(["tests.libraries"])
"""Forks processes from one that has imported the libraries."""

READ_AT_IMPORT = ("ATEN_", "OMP_", "ONEDNN_", "PYTHON", "TORCH_")
"""How variables begin that libraries, or Python itself, read once."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
AT_IMPORT = dict(os.environ)
"""The variables that the process that is forked from has."""

STREAMS = ("stdout", "stderr")


class Program:
    """A module or a script as a process of its own, from the root of the repository.

    It is forked from a process that has imported the libraries. `-c` and what a variable decides at import need a new
    interpreter.

    Args:
        words: of Python's command line: `-m`, a module and its words, or a script and its words.
        more: variables beside those of `environment`.
    """

    def __init__(self, *words: object, **more: str) -> None:
        self.words, self.folder = [*map(str, words)], tempfile.TemporaryDirectory()
        for name in STREAMS:
            Path(self.folder.name, name).touch()
        env = environment(**more)
        changed = {name for name, _ in env.items() ^ AT_IMPORT.items()}
        if self.words[0] == "-c" or any(name.startswith(READ_AT_IMPORT) for name in changed):
            command, (out, err) = [sys.executable, *self.words], (Path(self.folder.name, name) for name in STREAMS)
            with out.open("wb") as stdout, err.open("wb") as stderr:
                self._process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=stdout, stderr=stderr)
        else:
            self._process = PREPARED.Process(target=_be_program, args=(self.words, env, self.folder.name))
            self._process.start()
        atexit.register(self.kill)  # a test that fails leaves none behind

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it runs."""
        process = self._process
        return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()

    def said(self) -> str:
        """Its standard error so far."""
        return Path(self.folder.name, STREAMS[1]).read_text()

    def finish(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Waits for its end; a process that takes longer than `timeout` seconds is killed."""
        status = self._wait(timeout)
        with self.folder as folder:
            out, err = (Path(folder, name).read_text() for name in STREAMS)
        if status is None:
            raise subprocess.TimeoutExpired(self.words, timeout, out, err)
        return subprocess.CompletedProcess(self.words, status, out, err)

    def _wait(self, timeout: float) -> int | None:
        if isinstance(self._process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout)
        else:
            self._process.join(timeout)
            if self._process.exitcode is not None:
                return self._process.exitcode
        self.kill()
        return None

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self._process.kill()


def _be_program(words: list[str], env: dict[str, str], folder: str) -> None:
    """What Python does with these words, in the new process."""
    for number, name in enumerate(STREAMS, 1):
        with Path(folder, name).open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    of_module = words[0] == "-m"
    own = str(ROOT if of_module else Path(words[0]).absolute().parent)
    sys.path[:] = [own, *(each for each in sys.path if not each.startswith(str(ROOT / "tests")))]
    sys.argv[:] = words[1:] if of_module else words
    try:
        if of_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words, from the root of the repository, and waits."""
    return Program(*words, **more).finish(600)


def launch(*words: object, config: Path = DDP, processes: int = 2, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on several ranks under Accelerate's launcher, on CPUs: DDP over gloo."""
    launcher = ("-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", processes)
    return run(*launcher, *words, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", **more)


def run_ranks(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on two ranks as a launcher would, without the seconds that one takes to start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", **group, **more}
    ranks = [Program(*words, **env, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    try:
        done = [rank.finish(300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    said = "".join(each.stderr for each in done)
    return subprocess.CompletedProcess(ranks[0].words, max(abs(each.returncode) for each in done), stderr=said)


def launch_nodes(*words: object) -> None:
    """Runs a program on two nodes of one rank each, both on loopback, which find each other by rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = ("--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    launcher = ("-m", "accelerate.commands.launch", "--config_file", DDP_NODES, *meeting)
    env = environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    commands = [[sys.executable, *map(str, (*launcher, "--machine_rank", rank, *words))] for rank in (0, 1)]
    nodes = [subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for command in commands]
    for node in nodes:
        said = node.communicate(timeout=300)[1]
        assert node.returncode == 0, said


def into(folder: Path) -> list[str]:
    """Options that keep a run's files in this folder."""
    return ["--save_dir", str(folder), "--recon_dir", str(folder / "recon")]


def train(*words: object) -> int:
    """The training command inside this process, on one thread; gives the process its signals back."""
    from train_accel import main

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with one_thread():
            return main([str(word) for word in words])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def one_thread() -> Iterator[None]:
    """As many threads as the processes that this module starts have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def states(folder: Path) -> list[Path]:
    """The states that a run can resume from, oldest first."""
    return sorted((folder / "state").glob("step-*"))


def weights(folder: Path) -> dict[str, Tensor]:
    """The newest state's model."""
    return load_file(states(folder)[-1] / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any tensor: norm of the difference over the norm."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).double().norm() / a[k].double().norm().clamp(min=1e-30)) for k in a)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether every bit agrees."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of this kind in metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
