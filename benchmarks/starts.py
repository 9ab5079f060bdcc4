"""`python -m benchmarks.starts --coco_dir DIR --images DIR --out DIR`: a KLT start against random weights.

The same codec trains from both for the same steps, each at its own learning rate, and is measured through files.
"""

import math
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks.harness import Row, publish
from benchmarks.study.plan import CPU, KLT, Budget, Job, Study
from benchmarks.study.run import prepare, run_stage

LAMBDA = 0.013
STARTS: dict[str, tuple[object, ...]] = {"random": ("--lr", 1e-3), "klt": KLT}


def jobs(budget: Budget) -> list[Job]:
    """One run from each start."""
    shared = ("--act", "gdn", "--pretrained", "false", "--N", budget.N, "--M", budget.M, "--lr_warmup_steps", 100)
    return [Job(name, LAMBDA, budget.first_steps, (*shared, *options)) for name, options in STARTS.items()]


def row(study: Study) -> Row:
    """The RD loss after a KLT start against that after random weights."""
    sides: dict[str, float] = {}
    for name in STARTS:
        figures = study.figures(name) or []
        sides |= {f"{name}, {key}": mean(each[key] for each in figures) for key in ("psnr", "bpp")}
    value = 100 * (study.rd_loss("klt", LAMBDA) / study.rd_loss("random", LAMBDA) - 1)
    what = f"RD loss after {study.budget.first_steps:,} steps from a KLT start, against random weights"
    return Row(what, value, "%", at_most=0.0, sides=sides)


def main(argv: Iterable[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = ArgumentParser("python -m benchmarks.starts", description="A KLT start against random weights.")
    parser.add_argument("--coco_dir", required=True, help="photographs to train on: a COCO root, or sample")
    parser.add_argument("--images", required=True, help="photographs to measure on, which are not among them")
    parser.add_argument("--out", type=Path, required=True, help="the runs; a second call goes on with them")
    parser.add_argument("--steps", type=int, default=2000, help="of each run [2000]")
    given = parser.parse_args(None if argv is None else list(argv))
    given.out.mkdir(parents=True, exist_ok=True)
    study = Study(replace(CPU, first_steps=given.steps), given.out, given.out / "coco224")
    prepare(given.coco_dir, study.crops, 224)
    run_stage(study, jobs(study.budget), given.images, math.inf)
    publish("starts", [row(study)], {"budget": vars(study.budget), "lambda_mse": LAMBDA})
    return 0


if __name__ == "__main__":
    sys.exit(main())
