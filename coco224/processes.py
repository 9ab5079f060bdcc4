"""What programs with several worker processes share."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

from coco224.files import shared_memory

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The CPU time that this process's container may use: "quota period", or "max period"."""


def usable_cores(quota: Path = _QUOTA) -> int:
    """The CPU cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cores, int(limit) // int(period)))
    except (OSError, ValueError):  # no quota
        return cores


def possible_processes(wanted: int) -> int:
    """As many processes as wanted; one, with a line that says why, where the system cannot share memory."""
    if wanted > 1 and not shared_memory():
        print("several processes need a writable /dev/shm: using one process (--num_proc 1)", file=sys.stderr)
        return 1
    return wanted


def die_with_parent() -> None:
    """Ends this worker process as soon as its parent is gone, which a killed parent cannot say."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
