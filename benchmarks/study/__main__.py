"""`python -m benchmarks.study --coco_dir DIR --images DIR --out DIR`: what each block costs in quality.

A GDN codec is trained at each lambda. From it, every block (distilled start where it can learn from its GDN) trains on
for the same steps at each learning rate of a sweep, and at its best one with every lambda and seed; GDN itself goes on
for the same steps, and so does the linear control. From there, int8: quantization-aware training against the same steps
in float. Every codec is measured on --images through files that are written and read again.

The runs are runs of `train_accel.py`. After --minutes they stop with a checkpoint, the status is 75, and the same
command goes on. The last step writes `results/rd_study.json` and `.png`.

With `--budget architectures` all that is done for each architecture, and the last step writes
`results/study_architectures.json`. `--budget rates` compares a codec of all rates with codecs of one rate instead, for
each architecture, and the last step writes `results/rates_ARCH.json` and `.png`. `--budget int8` says what each block
loses in int8, for each architecture: `results/int8_ARCH.json`.
"""

import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

from benchmarks.study import architectures, int8, rates
from benchmarks.study.plan import BUDGETS, Study
from benchmarks.study.run import prepare, run
from codec.description.architecture import ARCHITECTURES
from training.preempt import PREEMPTED

FROM_EMBEDDED = {each.BUDGET: each for each in (rates, int8)}
"""The studies from the embedded codec, one per architecture, by budget."""


def main(argv: Iterable[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 75 where there is more to do."""
    parser = ArgumentParser("python -m benchmarks.study", description="What each block costs in quality against GDN.")
    parser.add_argument("--coco_dir", required=True, help="photographs to train on: a COCO root, or sample")
    parser.add_argument("--images", required=True, help="photographs to measure on, which are not among them")
    parser.add_argument("--out", type=Path, required=True, help="the runs; a second call goes on with them")
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="how large and how long [cpu]")
    parser.add_argument(
        "--arch",
        nargs="+",
        choices=ARCHITECTURES,
        default=ARCHITECTURES,
        help="architectures of `--budget rates` and `--budget int8` [all]",
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these [never]")
    given = parser.parse_args(None if argv is None else list(argv))
    start = time.time()
    given.out.mkdir(parents=True, exist_ok=True)
    crops = given.out / "coco224"
    if given.budget == architectures.BUDGET:
        found = architectures.studies(given.out, crops)
    elif given.budget in FROM_EMBEDDED:
        found = FROM_EMBEDDED[given.budget].studies(given.out, crops, given.arch)
    else:
        found = {given.budget: Study(BUDGETS[given.budget], given.out, crops)}
    prepare(given.coco_dir, crops, max(224, BUDGETS[given.budget].input_size))
    for study in found.values():
        if not run(study, given.images, start + 60 * given.minutes):
            print("the time is up; the same command goes on")
            return PREEMPTED
    if given.budget == architectures.BUDGET:
        architectures.summarize(found, given.images)
    elif given.budget in FROM_EMBEDDED:
        FROM_EMBEDDED[given.budget].summarize(found, given.images)
    else:
        from benchmarks.study.summary import summarize

        summarize(found[given.budget], given.images, given.budget)
    return 0


if __name__ == "__main__":
    sys.exit(main())
