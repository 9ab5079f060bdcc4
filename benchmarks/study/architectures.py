"""What the study of architectures says: each against the factorized codec, blocks and int8 against GDN in each."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks.harness import Row, publish
from benchmarks.study.plan import BUDGETS, Study
from benchmarks.study.summary import averages, difference_of, finished, percent, tables_row
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH

BUDGET = "architectures"
BARS = {"bmshj2018_hyperprior": -15.0, "mbt2018_mean": -20.0}
"""BD-rate against the factorized codec, in percent; on published results it is -21 and -27 % at full width."""


def studies(folder: Path, crops: Path) -> dict[str, Study]:
    """One study per architecture, with the same steps, data and widths."""
    budget = BUDGETS[BUDGET]
    return {arch: Study(replace(budget, arch=arch), folder / arch, crops) for arch in ARCHITECTURES}


def summarize(found: Mapping[str, Study], images: str) -> None:
    """Reads the finished runs and publishes the rows, with the mean figures of every run."""
    factorized = found[DEFAULT_ARCH]
    rows = [architecture_row(study, factorized) for arch, study in found.items() if arch != DEFAULT_ARCH]
    for study in found.values():
        rows += [block_row(study, act) for act in study.budget.blocks]
        rows += [int8_row(study, act) for act in study.budget.int8_blocks]
        of_tables = tables_row(study)
        rows.append(replace(of_tables, what=f"{study.budget.arch}: {of_tables.what}"))
    pictures = Path(images).name
    runs = {
        arch: {
            path.parent.name: averages(study, path.parent.name) for path in sorted(study.folder.glob("*/figures.json"))
        }
        for arch, study in found.items()
    }
    command = f"python -m benchmarks.study --coco_dir COCO --images {pictures} --out DIR --budget {BUDGET}"
    details = {"command": command, "budget": vars(factorized.budget), "pictures": pictures, "runs": runs}
    publish(f"study_{BUDGET}", rows, details)


def architecture_row(study: Study, factorized: Study) -> Row:
    """An architecture against the factorized codec, GDN in both, after the same steps."""
    ours, theirs = (finished(each, each.budget.baseline, each.budget.seeds[0]) for each in (study, factorized))
    at_each = [
        100 * (study.rd_loss(own, x) / factorized.rd_loss(other, x) - 1)
        for own, other, x in zip(ours, theirs, study.budget.lambdas, strict=True)
    ]
    sides = {f"RD loss at lambda {x:g}, %": each for x, each in zip(study.budget.lambdas, at_each, strict=True)}
    sides["RD loss, mean, %"] = mean(at_each)
    for act in study.budget.blocks:
        tested = finished(study, act, study.budget.seeds[0])
        sides[f"BD-rate with {act}, %"] = difference_of((study, tested), (factorized, theirs))
    arch = study.budget.arch
    what = f"{arch} with GDN: BD-rate against {DEFAULT_ARCH} with GDN after the same steps"
    return Row(what, difference_of((study, ours), (factorized, theirs)), "%", at_most=BARS[arch], sides=sides)


def block_row(study: Study, act: str) -> Row:
    """A block against GDN that trained on for the same steps, in the same architecture."""
    budget = study.budget
    rate = difference_of(*((study, finished(study, each, budget.seeds[0])) for each in (act, budget.baseline)))
    sides = {"RD loss, mean, %": mean(percent(study, (act, ""), (budget.baseline, "")))}
    what = f"{budget.arch}, {act}: BD-rate against GDN trained on for {budget.extra_steps:,} steps"
    return Row(what, rate, "%", sides=sides)


def int8_row(study: Study, act: str) -> Row:
    """A block in int8 (g_a, h_a and g_s on the chip) against GDN in float, in the same architecture."""
    budget = study.budget
    seed = budget.int8_seeds[0]
    int8, own = finished(study, act, seed, "int8"), finished(study, act, seed, "float")
    gdn = finished(study, budget.baseline, seed, "float")
    sides = {"against the block's own float codec, %": difference_of((study, int8), (study, own))}
    what = f"{budget.arch}, {act} in int8, {budget.int8_steps:,} steps: BD-rate against GDN in float"
    return Row(what, difference_of((study, int8), (study, gdn)), "%", at_most=1.0, sides=sides)
