"""What a run needs of its machines: patience, settings of a GPU for exact results, and CPU cores."""

import os
from dataclasses import dataclass

import torch

from coco224.errors import counted
from codec.cli import OptionGroup, between, option
from codec.network.exact import exact_fp32

LONGEST_WAIT = 10**7
"""Seconds: four months."""


@dataclass(frozen=True)
class LaunchOptions(OptionGroup):
    ddp_timeout: int = option(
        3600,
        "seconds that a process waits for the others (downloads, slow disks) before the run fails",
        rule=between(1, LONGEST_WAIT),
        local=True,
    )


def prepare_gpu(deterministic: bool) -> None:
    """Sets exact FP32, and how algorithms are chosen.

    Args:
        deterministic: only algorithms that give the same bits in every run. Without it cuDNN tries which of its
            algorithms is the fastest, and may choose another one after a resume.
    """
    exact_fp32()
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # a user's block may have no other algorithm
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a kernel per tensor
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it


def core_warning(device: torch.device, processes: int, threads: int, cores: int) -> str:
    """One line if the processes of a machine do not fit its CPU cores; empty if they do.

    Args:
        processes: processes of this run on this machine.
        threads: threads with which each computes on the CPU.
    """
    if device.type == "cuda":
        if cores >= 2 * processes:
            return ""
        return (
            f"{counted(processes, 'process')} share{'s' * (processes == 1)} {counted(cores, 'CPU core')}, and each "
            "needs one to drive its GPU and one to read data: the GPUs may wait; ask for more (SLURM: --cpus-per-task)"
        )
    fitting = max(1, cores // processes)
    if processes == 1 or fitting // 2 < threads <= fitting:
        return ""
    return (
        f"{processes} processes compute with {counted(threads, 'thread')} each, on {counted(cores, 'CPU core')}: "
        f"OMP_NUM_THREADS={fitting} is faster"
    )
