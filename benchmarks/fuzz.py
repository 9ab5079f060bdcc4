"""`python -m benchmarks.fuzz`: 500 damaged or hostile inputs to the commands, each in a process of its own.

A command may do its work, or refuse the input in one line with status 2. A traceback, another status, more than 30
seconds or 2 GB, and a picture that differs from the one that was compressed are faults; each is printed with its seed.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.commands import Case
from benchmarks.harness import Row, publish
from benchmarks.hostile import Inputs

INPUTS = 500
SECONDS, MEGABYTES = 30, 2000


@dataclass(frozen=True)
class Outcome:
    """How a command took an input: its exit status (None: it was killed), its stderr, seconds and megabytes."""

    status: int | None
    said: str
    seconds: float
    megabytes: float

    def fault(self, case: Case) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.status is None:
            return f"more than {SECONDS} s"
        if "Traceback" in self.said or self.status not in (0, 2, os.EX_TEMPFAIL):
            return (
                f"status {self.status}: {self.said.strip().splitlines()[-1] if self.said.strip() else 'nothing said'}"
            )
        errors = [line for line in self.said.splitlines() if line.startswith("error:")]
        if self.status == 2 and len(errors) != 1:
            return f"{len(errors)} error lines for status 2"
        if self.megabytes > MEGABYTES:
            return f"{self.megabytes:.0f} MB"
        if self.status == 0 and case.out is not None and case.picture is not None and case.out.exists():
            found = np.asarray(Image.open(case.out).convert("RGB"))
            if found.shape != case.picture.shape or not np.array_equal(found, case.picture):
                return "a wrong picture"
        return ""


def run(case: Case) -> Outcome:
    """The command in a fork of this process, which has imported what is slow to import."""
    reader, writer = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os.dup2(writer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.setpgrp()
        _become(case.words)
    os.close(writer)
    os.set_blocking(reader, False)
    said, status = b"", None
    while time.perf_counter() - start < SECONDS:
        with contextlib.suppress(BlockingIOError):
            said += os.read(reader, 65536)
        ended, code, used = os.wait4(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.005)
    else:
        os.killpg(child, signal.SIGKILL)
        _, _, used = os.wait4(child, 0)
    with contextlib.suppress(BlockingIOError):
        said += os.read(reader, 1 << 20)
    os.close(reader)
    seconds = time.perf_counter() - start
    return Outcome(status, said.decode(errors="replace"), seconds, used.ru_maxrss / 1e3)


def _become(words: list[str]) -> None:
    """Runs a program in this child and ends it with the program's status."""
    from importlib import import_module

    from codec.cli import run as run_command

    status: Any = 1
    try:
        sys.argv = words
        module = import_module(words[0])
        run_command(lambda: module.main(words[1:]))
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def main() -> None:
    """Runs the inputs and keeps the result."""
    import torch

    torch.set_num_threads(1)
    import codec_pipeline  # noqa: F401
    import train_accel  # noqa: F401
    from codec import compress, decompress, evaluate, push  # noqa: F401
    from codec.evaluation import compare  # noqa: F401
    from export import runtime  # noqa: F401
    from training import setup  # noqa: F401

    count = int(sys.argv[1]) if sys.argv[1:] else INPUTS
    faults, slowest, largest = [], 0.0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        inputs = Inputs(Path(folder))
        for seed in range(count):
            case = inputs.make(seed)
            outcome = run(case)
            if fault := outcome.fault(case):
                faults.append(f"seed {seed}: {' '.join(case.words)[:300]}: {fault}")
                print(faults[-1], flush=True)
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
            shutil.rmtree(Path(folder, f"{seed:05d}"), ignore_errors=True)
    publish(
        "fuzz",
        [
            Row(f"faults of {count} damaged or hostile inputs to the commands", len(faults), "faults", at_most=0),
            Row("the slowest of them", slowest, "s", at_most=SECONDS),
            Row("the most memory", largest, "MB", at_most=MEGABYTES, note=f"{before:.0f} MB are the libraries"),
        ],
        {"faults": faults},
    )


if __name__ == "__main__":
    main()
