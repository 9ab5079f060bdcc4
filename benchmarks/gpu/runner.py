"""Runs parts, each in a process of its own with a time limit, and goes on after a failure."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.gpu.parts import Part
from benchmarks.gpu.processes import kill_children, kill_tree, start
from benchmarks.gpu.setting import NotApplicableError, Setting
from benchmarks.harness import Row

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
LEAST = 20.0
"""Seconds that must be left to start a part."""

LOG_LINES = 40
"""Lines of its output that a failed part's result keeps."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        status: PASS, FAIL or NOT_APPLICABLE.
        reason: why, unless it passed.
        rows: its figures, up to a failure.
        log: the end of its output, if it failed.
    """

    part: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def run_all(parts: Iterable[Part], setting: Setting, gpus: int, minutes: float, together: int = 1) -> Iterator[Outcome]:
    """The outcomes of the parts, each as soon as those before it are known.

    Args:
        setting: its folder gets a folder for each part.
        gpus: how many there are.
        minutes: the time of all parts; a part for which none is left is not applicable.
        together: parts that do not measure time and run at once.
    """
    end = time.monotonic() + 60 * minutes

    def run(part: Part) -> Outcome:
        left = end - time.monotonic()
        if part.gpus > gpus:
            return Outcome(part.name, NOT_APPLICABLE, f"needs {part.gpus} GPUs, there is {gpus}")
        if left < LEAST:
            return Outcome(part.name, NOT_APPLICABLE, f"no time is left of --minutes {minutes:g}")
        return run_part(part, setting, min(part.seconds, left))

    parts = list(parts)
    checks = [part for part in parts if not part.measures]
    with ThreadPoolExecutor(together) as pool:
        yield from pool.map(run, checks) if together > 1 else map(run, checks)
    yield from map(run, (part for part in parts if part.measures))


def run_part(part: Part, setting: Setting, limit: float) -> Outcome:
    """Runs a part; kills it, with everything that it started, after `limit` seconds.

    With less time than its own, its end is no failure: the figures so far are kept.
    """
    folder = setting.folder / part.name
    folder.mkdir(parents=True)
    results, log = folder / "results.jsonl", folder / "log"
    begun = time.monotonic()
    process = start(_work, part, replace(setting, folder=folder), results, log=log)
    process.join(limit)
    over = process.exitcode is None
    assert process.pid is not None
    kill_tree(process.pid)
    process.join()
    seconds = time.monotonic() - begun
    rows, ending = _read(results)
    if over and limit < part.seconds:
        status, reason = NOT_APPLICABLE, f"the time of all parts ended after {limit:.0f} s of it"
    elif over:
        status, reason = FAIL, f"not done after {limit:.0f} s"
    elif not ending:
        status, reason = FAIL, f"its process ended with status {process.exitcode}"
    else:
        status, reason = ending["status"], ending["reason"]
    if status != FAIL and (missed := [row.what for row in rows if row.met is False]):
        status, reason = FAIL, f"misses the bar: {'; '.join(missed)}"
    return Outcome(part.name, status, reason, seconds, rows, _last_lines(folder) if status == FAIL else [])


def _work(part: Part, setting: Setting, results: Path) -> None:
    """In the part's process: writes each figure to `results` as soon as it is known, then how it ended."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with results.open("a") as file:

        def write(**line: object) -> None:
            print(json.dumps(line), file=file, flush=True)

        try:
            for row in part.run(setting):
                write(row=asdict(row))
        except NotApplicableError as reason:
            write(status=NOT_APPLICABLE, reason=str(reason))
        except Exception as error:
            write(status=FAIL, reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        else:
            write(status=PASS, reason="")
        finally:
            kill_children(os.getpid())  # those of a part that failed go on


def _read(results: Path) -> tuple[list[Row], dict[str, str]]:
    """The figures that a part wrote, and how it ended; empty if it did not say."""
    rows: list[Row] = []
    ending: dict[str, str] = {}
    for line in results.read_text().splitlines() if results.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a kill can tear the last line
            content = json.loads(line)
            if "row" in content:
                rows.append(Row(**content["row"]))
            else:
                ending = content
    return rows, ending


def _last_lines(folder: Path) -> list[str]:
    lines: list[str] = []
    for log in sorted([folder / "log", *folder.glob("*.log")]):
        said = log.read_text(errors="replace").split("\n") if log.exists() else []
        lines += [f"== {log.name}", *(line.rpartition("\r")[2] for line in said[-LOG_LINES:])]
    return lines
