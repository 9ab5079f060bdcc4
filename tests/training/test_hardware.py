"""CPU cores that are too few, or that a launcher leaves unused, are said in one line."""

import os
from pathlib import Path

import pytest
import torch

from coco224.processes import usable_cores
from training.hardware import core_warning


@pytest.mark.parametrize(
    ("device", "processes", "threads", "cores", "says"),
    [
        ("cuda", 8, 1, 2, "8 processes share 2 CPU cores"),
        ("cuda", 8, 1, 16, ""),
        ("cuda", 1, 16, 16, ""),
        ("cpu", 2, 1, 32, "2 processes compute with 1 thread each, on 32 CPU cores: OMP_NUM_THREADS=16 is faster"),
        ("cpu", 2, 2, 2, "2 processes compute with 2 threads each, on 2 CPU cores: OMP_NUM_THREADS=1 is faster"),
        ("cpu", 2, 1, 2, ""),
        ("cpu", 2, 12, 32, ""),
        ("cpu", 1, 1, 32, ""),
    ],
)
def test_cores_that_do_not_fit_the_processes(device: str, processes: int, threads: int, cores: int, says: str) -> None:
    line = core_warning(torch.device(device), processes, threads, cores)
    assert line.startswith(says) if says else not line


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_container_s_quota_limits_the_cores(quota: str, cores: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(quota + "\n")
    assert usable_cores(file) == (cores or len(os.sched_getaffinity(0)))
