"""`python -m benchmarks.table`: writes docs/benchmarks.md and the tables of other pages from the kept results."""

import json
from pathlib import Path
from typing import Any

from benchmarks import front
from benchmarks.harness import RESULTS, ROOT, Row, table

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "quality.png"
TABLES = {
    ROOT / "README.md": {"demo": front.demo, "blocks": front.table},
    ROOT / "docs" / "npu.md": {"chips": front.chips},
}
"""The tables of other pages, by name: each is between its two marks."""

START, END = "<!-- {}: written by python -m benchmarks.table -->\n", "<!-- end of {} -->\n"

UNCOMMITTED = "+"
"""Ends the commit of a result whose code no commit holds."""

SUBJECTS = {
    "step": "Training: speed and memory",
    "overhead": "Training: what the trainer adds to its own step",
    "ddp": "Training: two processes",
    "memory": "Training: memory over the size of the dataset",
    "curves": "Training: the fast path against plain FP32",
    "startup": "Training: start",
    "gpu": "Training: on a GPU",
    "forms": "Training: forms of the convolutions",
    "generated": "Training: the code for a GPU",
    "data": "Data: reading and preparing",
    "rd_study_cpu_long": "Quality: what each block costs",
    "rd_study_cpu_int8": "Quality: what int8 costs ReLU",
    "study_architectures": "Quality: architectures",
    "rates_bmshj2018_factorized": "Quality: one checkpoint for all rates, bmshj2018_factorized",
    "rates_bmshj2018_hyperprior": "Quality: one checkpoint for all rates, bmshj2018_hyperprior",
    "rates_mbt2018_mean": "Quality: one checkpoint for all rates, mbt2018_mean",
    "int8_bmshj2018_factorized": "Quality: what int8 costs each block, bmshj2018_factorized",
    "int8_bmshj2018_hyperprior": "Quality: what int8 costs each block, bmshj2018_hyperprior",
    "starts": "Quality: a KLT start",
    "sample": "Quality: the embedded codecs",
    "demo": "Quality: the demo",
    "roundings": "Quality: what each int8 rounding costs",
    "deployment": "Deployment: ONNX Runtime",
    "chips": "Deployment: every compiler",
    "page": "Deployment: the page for browsers",
    "compilers": "Deployment: Arm's compiler",
    "families": "Deployment: chip families",
    "fidelity": "Deployment: exported files against PyTorch",
    "coding": "Files: the entropy coder",
    "device": "Files: the coder in C",
    "large": "Files: large pictures",
    "damage": "Files: damage",
    "everywhere": "Files: the same symbols everywhere",
    "priors": "Files: a competition of priors",
    "fuzz": "Commands: hostile inputs",
}
"""The order and the titles of the page; results that are not named here come after them."""

HEADLINE = {
    "speed of training against CompressAI's example trainer, GDN kept": (
        "step",
        "training, quality 3, batch 16, MSE + bpp, GDN",
    ),
    "the same, ReLU in GDN's place": ("step", "training, quality 3, batch 16, MSE + bpp, ReLU"),
    "speed of reading crops against ImageFolder on PNG": ("data", "the same against ImageFolder"),
    "RD loss of `gate_mlp` against GDN": ("rd_study_cpu_long", "gate_mlp: RD loss"),
    "`gate_mlp` in int8 against GDN in float": (front.INT8, "bmshj2018_factorized, gate_mlp in int8: BD-rate"),
    "ReLU in int8 against GDN in float, speed in ONNX Runtime": ("deployment", "ReLU in int8 against GDN in float"),
    "speed of decoding symbols against CompressAI's coder": ("coding", "decoding y"),
    "pictures from 10,000 damaged files with a hyperprior, crashes and hangs": (
        "damage",
        "pictures from 10,000 damaged files, crashes and hangs none: mbt2018_mean",
    ),
}
"""The figures on top of the page: what they are, the result, and how its row begins."""

INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.table` from `benchmarks/results/*.json`; do not edit it by hand.

```sh
make bench                    # every benchmark on this machine; writes this page anew
make gpu                      # on a machine with a GPU: checks and measurements, see CONTRIBUTING.md
python -m benchmarks.step     # one of them
```

Each benchmark runs both sides in one process, or alternates them in one run, and takes medians without the warm-up.
*CompressAI's way* is its example trainer: FP32, contiguous memory, `ImageFolder`, `RandomCrop` and `DataLoader`,
`RateDistortionLoss`, two Adams. *The recipe's way* is bf16 autocast, contiguous memory, JPEG crops in folders, and an
`.item()` for each figure of each step (`benchmarks/peers.py`). *The bar* is the target that this project set: ✓ met,
✗ not met. *Sides* are the single figures behind the measured one. *x* is a ratio of the two sides, *of all* a share
(1 is all). *RD loss* is `lambda*255^2*MSE + bpp`; [study.md](study.md) explains the study. Each command is as it was
at its commit, so some have another name today: `rd_study` is now `study`.
"""


def rendered() -> str:
    """The page."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    older = [name for name, result in results.items() if result["machine"]["commit"].endswith(UNCOMMITTED)]
    shown = [name for name in (*SUBJECTS, *sorted(results.keys() - SUBJECTS)) if name in results.keys() - set(older)]
    parts = [INTRODUCTION, headline(), *(section(name, results[name]) for name in shown)]
    if older:
        names = ", ".join(f"`benchmarks/results/{name}.json`" for name in older)
        parts.append(f"## Not shown\n\n{names}: measured with code that no commit holds.\n")
    return "\n".join(parts)


def headline() -> str:
    """The few figures that matter most."""
    lines = ["## The figures that matter", "", "| what | measured | where |", "| --- | --- | --- |"]
    for what, (name, begins) in HEADLINE.items():
        row = front.row(name, begins)
        lines.append(f"| {what} | {row['value']:.3g} {row['unit']} | [{title(name)}](#{anchor(title(name))}) |")
    return "\n".join([*lines, ""])


def section(name: str, result: Any) -> str:
    """A result: its table, machine, commit and command."""
    where = result["machine"]
    device = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    versions = ", ".join(f"{package} {where['versions'][package]}" for package in ("torch", "onnxruntime"))
    made = f"`{result['command']}` at commit {where['commit']}, {where['date']}; {device}; {versions}."
    return f"## {title(name)}\n\n{made}\n\n{table([Row(**row) for row in result['rows']])}\n"


def title(name: str) -> str:
    """The heading of a result."""
    return SUBJECTS.get(name, name)


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def filled(page: Path) -> str:
    """The text of a page with its tables."""
    text = page.read_text()
    for name, written in TABLES[page].items():
        start, end = START.format(name), END.format(name)
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{written()}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Writes the page, the other pages' tables and the README's plot."""
    PAGE.write_text(rendered())
    for page in TABLES:
        page.write_text(filled(page))
    front.draw(PLOT)


if __name__ == "__main__":
    main()
