"""The table of the parts and the file of the results."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.runner import FAIL, NOT_APPLICABLE, Outcome
from benchmarks.harness import RESULTS, Row, machine, table, write

RESULT = RESULTS / "gpu.json"


def say(outcome: Outcome) -> None:
    """Prints how a part ended, and its figures."""
    print(f"\n{outcome.part}: {outcome.status} after {outcome.seconds:.0f} s {outcome.reason}".rstrip(), flush=True)
    if outcome.rows:
        print(table(outcome.rows), flush=True)
    for line in outcome.log:
        print(f"    {line}", flush=True)


def report(outcomes: Sequence[Outcome], where: dict[str, Any], path: Path) -> None:
    """Writes all outcomes so far: the figures as those of any benchmark, and how each part ended."""
    counts = {status: [each.part for each in outcomes if each.status == status] for status in (FAIL, NOT_APPLICABLE)}
    failed = Row(
        f"parts that fail, of {len(outcomes) - len(counts[NOT_APPLICABLE])} that ran",
        len(counts[FAIL]),
        "parts",
        at_most=0,
        note=", ".join(counts[FAIL]),
    )
    figures = [row for outcome in outcomes for row in outcome.rows]
    parts = [{key: value for key, value in asdict(outcome).items() if key != "rows"} for outcome in outcomes]
    write(path, "gpu", where, [failed, *figures], {"parts": parts})


def place() -> dict[str, Any]:
    """The machine, with its GPUs, their driver and CUDA."""
    return machine() | {"gpus": torch.cuda.device_count(), "driver": _driver(), "cuda": torch.version.cuda}


def _driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else ""


def summary(outcomes: Sequence[Outcome], where: dict[str, Any]) -> str:
    """One line a part in Markdown, then the machine."""
    lines = ["", "| part | result | seconds | why |", "| --- | --- | --- | --- |"]
    lines += [f"| {each.part} | {each.status} | {each.seconds:.0f} | {each.reason} |" for each in outcomes]
    known = ", ".join(f"{key} {value}" for key, value in where.items() if value and key != "versions")
    return "\n".join([*lines, "", f"{known}, torch {where['versions']['torch']}"])
