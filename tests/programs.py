"""Running the programs, as processes or inside the test, and reading what a training run left."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words, from the root of the repository, and waits."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=600, check=False
    )


def launch(*words: object, config: Path = DDP, processes: int = 2, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on several ranks under Accelerate's launcher, on CPUs: DDP over gloo."""
    launcher = ("-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", processes)
    return run(*launcher, *words, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", **more)


def run_ranks(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on two ranks as a launcher would, without the seconds that one takes to start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", **group, **more)
    command = [sys.executable, *map(str, words)]
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            subprocess.Popen(command, cwd=ROOT, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stderr=said)
            for rank in ("0", "1")
        ]
        try:
            statuses = [rank.wait(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        said.seek(0)
        return subprocess.CompletedProcess(command, max(map(abs, statuses)), stderr=said.read())


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
