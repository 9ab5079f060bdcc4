"""What every benchmark shares: sides that alternate in one run, medians, and a result that names its machine."""

import json
import multiprocessing
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "compressai", "datasets", "numpy", "pillow", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        what: what was measured, complete enough to stand alone in a table.
        value: the figure that a bar is about, in `unit` ("x" for a ratio).
        at_least, at_most: the bar, where there is one.
        sides: what each side took or gave, by name with its unit, like {"ours, s": 1.2, "CompressAI's way, s": 4.8}.
        note: what a reader must know beside it: the floor, and the share of it that was reached.
    """

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    sides: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        high_enough = self.at_least is None or self.value >= self.at_least
        return high_enough and (self.at_most is None or self.value <= self.at_most)


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Calls the sides in turn, so that a machine's moods fall on all of them, and gives each one's median seconds.

    The first `warmup` rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warmup + rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            wait_for_gpu()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values[warmup:]) for name, values in seconds.items()}


def wait_for_gpu() -> None:
    """Until the GPU has done what this process asked of it; a process that asked nothing goes on."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Apart:
    """A side in a process of its own, so that neither its memory nor its allocator nor its threads are another's.

    Args:
        make: builds the side, in that process, and returns what a round calls; a function of a module.
        args: what it takes.
        forks: fork this process, which must not have computed before, instead of starting one that imports all anew.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any, forks: bool = False) -> None:
        context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()
        self.peak_mb = 0.0

    def __call__(self) -> None:
        """One round."""
        self._pipe.send(True)
        self.peak_mb = self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> None:
    side = make(*args)
    while pipe.recv():
        side()
        pipe.send(peak_mb())


def peak_mb() -> float:
    """The most memory that this process has held: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        wait_for_gpu()
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def publish(name: str, rows: list[Row], details: Mapping[str, Any] | None = None) -> None:
    """Prints the rows and keeps them as `results/NAME.json`, or `results/NAME-GPU.json` where there is a GPU.

    Of a path in the command the last part is kept: where things lie on this machine is nobody else's.
    """
    where = machine()
    stem = f"{name}-{slug(where['gpu'])}" if where["gpu"] else name
    RESULTS.mkdir(exist_ok=True)
    write(RESULTS / f"{stem}.json", name, where, rows, details)
    print(table(rows))
    print(", ".join(f"{key} {value}" for key, value in where.items() if value and key != "versions"))


def write(
    path: Path, name: str, where: Mapping[str, Any], rows: list[Row], details: Mapping[str, Any] | None = None
) -> None:
    """Writes a result: benchmark, command, machine, rows, and what else it keeps."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *words])
    result = {"benchmark": name, "command": command, "machine": where, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps({**result, **(details or {})}, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| what | measured | bar | sides |", "| --- | --- | --- | --- |"]
    for row in rows:
        bars = (("≥", row.at_least), ("≤", row.at_most))
        bar = " ".join(f"{sign} {limit:g}" for sign, limit in bars if limit is not None)
        bar += {None: "", True: " ✓", False: " ✗"}[row.met]
        sides = "; ".join([f"{side} {figure:.3g}" for side, figure in row.sides.items()] + [row.note] * bool(row.note))
        lines.append(f"| {row.what} | {row.value:.3g} {row.unit} | {bar} | {sides} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "gpu": gpu_model(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """The processor's name, with the extensions that bf16 runs on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in info.get("flags", "").split()]
    return " ".join([info.get("model name", platform.machine()), *(f"+{flag}" for flag in flags)])


def gpu_model() -> str:
    """The first GPU's name, empty where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def commit() -> str:
    """This checkout's commit, with "+" where other files are changed or new than those that benchmarks write."""
    written = ("benchmarks/results", "docs/benchmarks.md", "docs/quality.png", "README.md")
    changed = git("status", "--porcelain", "--", ":/", *(f":!/{path}" for path in written))
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + "+" * bool(changed)


def git(*words: str) -> str:
    """What git says of this checkout; nothing where there is none."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def slug(text: str) -> str:
    """A name for a file."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
