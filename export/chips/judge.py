"""Asks compilers about the parts of a codec, each in a process of its environment."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import export
from codec.network.codec import Codec
from export.chips.compiler import INPUT, LOG, Compiler, Job
from export.chips.compilers import TARGETS, installed, python_of
from export.chips.part import QuantizedPart
from export.chips.worker import OUTPUT
from export.graph.parts import Part

PSNR, ORT_PSNR = "PSNR, dB", "ONNX Runtime's PSNR, dB"
"""Of a decoder's picture: computed as on the chip, and by ONNX Runtime."""

ROUNDED = "equal once rounded, %"
"""Of levels of y: how many stand for the same whole number."""


@dataclass(frozen=True)
class Verdict:
    """A compiler's result for one part on one chip.

    Attributes:
        tool: the compiler's package and version.
        complaint: why not all of the part runs on the chip; empty if all of it does.
        figures: the compiler's estimates.
        values: what the part gives: symbols, levels, fifths of symbols, or bytes (of the picture).
        difference: its outputs in the chip's arithmetic against ONNX Runtime's, on a photograph; empty if it does not
            simulate the chip.
    """

    part: str
    target: str
    tool: str
    complaint: str
    figures: dict[str, Any]
    values: str
    difference: dict[str, float]

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        place = "NOT all on the chip" if self.complaint else "all on the chip"
        return " | ".join(filter(None, [place, figures, in_words(self.values, self.difference)]))


def judge(
    parts: Sequence[QuantizedPart],
    targets: Sequence[str],
    environments: Path,
    out: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Verdict]:
    """Compiles every part for every target, one after the other.

    Args:
        environments: the folder of the compilers' environments.
        out: where to keep all files, in a folder for each target and part; None: they are not kept.
        options: of `Job`.
    """
    for target in targets:
        for part in parts:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(out or scratch, target, part.name).absolute()
                folder.mkdir(parents=True, exist_ok=True)
                job = Job(part.name, target, folder, options or {})
                yield ask(TARGETS[target], job, part, python_of(TARGETS[target], environments))


def ask_installed(int8: Codec, parts: Iterable[Part], x: Tensor, environments: Path) -> list[Verdict]:
    """What every installed compiler says of these parts for its first chip, where their latents are in 8 bits."""
    targets = [each.targets[0] for each in installed(environments)]
    latent = int8.y_model.in_levels or int8.y_model.symbol_limits is not None
    ready = [QuantizedPart(int8, part, x) for part in parts if latent and (part != "h_a" or int8.has_symbols("h_a"))]
    return list(judge(ready, targets, environments))


def ask(compiler: Compiler, job: Job, part: QuantizedPart, python: Path) -> Verdict:
    """One compiler's verdict on one part."""
    np.save(job.folder / INPUT, part.example)
    figures = compiler.prepare(part, job)
    answer = in_worker(compiler, job, python)
    figures |= answer["figures"]
    difference = {}
    if "simulation" in answer:
        figures["simulation"] = answer["simulation"]
    elif (job.folder / OUTPUT).exists():
        theirs = np.load(job.folder / OUTPUT)
        difference = compare(theirs, part.output)
        if part.values == "levels":
            symbols = part.rounded(theirs) == part.rounded(part.output)
            difference[ROUNDED] = round(100 * float(symbols.mean()), 2)
        if job.part == "decoder":
            difference |= {PSNR: part.psnr(theirs), ORT_PSNR: part.psnr(part.output)}
    tool = answer.get("tool", compiler.package)
    return Verdict(job.part, job.target, tool, answer["complaint"], figures, part.values, difference)


def in_worker(compiler: Compiler, job: Job, python: Path) -> dict[str, Any]:
    """Runs `export.chips.worker` in the compiler's environment, where it sees no package of ours but `export`."""
    given: dict[str, Any] = {
        "part": job.part,
        "target": job.target,
        "folder": str(job.folder),
        "options": dict(job.options),
    }
    given["parent"] = os.getpid()
    (job.folder / OUTPUT).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as packages, (job.folder / LOG).open("wb") as log:
        Path(packages, "export").symlink_to(Path(export.__file__).parent)
        done = subprocess.run(
            [str(python), "-m", "export.chips.worker", compiler.name],
            input=json.dumps(given).encode(), stdout=subprocess.PIPE, stderr=log, cwd=job.folder, check=False,
            env=os.environ | {"PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    said = (job.folder / LOG).read_text(errors="replace").strip().splitlines() or ["it says nothing"]
    return {"complaint": f"the compiler ends with status {done.returncode}: {said[-1]}", "figures": {}}


def compare(theirs: NDArray[np.uint8], ours: NDArray[np.uint8]) -> dict[str, float]:
    """Per cent of equal values, mean and largest difference of 8-bit outputs."""
    steps = np.abs(theirs.astype(int) - ours.astype(int))
    return {
        "equal, %": round(100 * float((steps == 0).mean()), 2),
        "mean": round(float(steps.mean()), 4),
        "largest": float(steps.max()),
    }


def in_words(values: str, difference: Mapping[str, float]) -> str:
    """The difference in words; empty if there is none.

    Args:
        values: what differs, as in `Verdict`.
    """
    if not difference:
        return ""
    said = f"simulated: {difference['equal, %']} % of the {values} equal ONNX Runtime's"
    if difference["largest"]:
        said += f", off by {difference['largest']:.0f} at most, {difference['mean']} on average"
    if ROUNDED in difference:
        said += f"; {difference[ROUNDED]} % once they are rounded to whole numbers"
    if PSNR in difference:
        said += f"; PSNR {difference[PSNR]:.2f} dB, ONNX Runtime's {difference[ORT_PSNR]:.2f}"
    return said
