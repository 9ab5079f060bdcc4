"""What the study's runs say: a row a block, `results/rd_study*.json`, and a plot of BD-rate against latency."""

import json
from pathlib import Path
from statistics import mean

import torch

from benchmarks.compilers import CORES
from benchmarks.deployment import PARTS, THREADS, graphs, measure
from benchmarks.harness import RESULTS, Row, publish
from benchmarks.study.plan import CONTROL, PLUGIN, Study
from codec.blocks import load_plugin
from codec.evaluation.curves import Curve, NoDifference, Point, curve, difference
from export.pictures import sample_picture

CORE = CORES[0]
"""Of the compilers' figures."""

ENOUGH_BPP = 0.1
"""Below it, the 16 bytes of a file's header are too large a share to say how good the tables are."""


def summarize(study: Study, images: str, budget: str) -> None:
    """Reads the finished runs, times the blocks in ONNX Runtime, and publishes rows, details and plot."""
    load_plugin(PLUGIN)
    milliseconds = latency(study.budget.acts)
    rows = [
        *(block_row(study, act, milliseconds[act]) for act in study.budget.blocks),
        *(int8_row(study, act) for act in study.budget.int8_blocks),
        *(verdicts(study) if study.budget.blocks else ()),
        tables_row(study),
    ]
    names = sorted(path.parent.name for path in study.folder.glob("*/figures.json"))
    pictures = Path(images).name
    details = {
        "command": f"python -m benchmarks.study --coco_dir COCO --images {pictures} --out DIR --budget {budget}",
        "budget": vars(study.budget),
        "pictures": pictures,
        "learning rates": {act: study.rate(act) for act in study.budget.acts},
        "ms of encoder and decoder in int8, 768x512": milliseconds,
        f"ms of encoder and decoder by Vela, {CORE}, 224x224": compiled(),
        "runs": {name: averages(study, name) for name in names},
    }
    name = "rd_study" if budget == "cpu" else f"rd_study_{budget}"
    if study.budget.blocks:
        draw(study, milliseconds, RESULTS / f"{name}.png")
    publish(name, rows, details)


def latency(acts: tuple[str, ...]) -> dict[str, float]:
    """Milliseconds of encoder and decoder in int8, quality 8, 768x512, two threads."""
    torch.set_num_threads(THREADS)
    took = measure(graphs(sample_picture(768)[:, :, :512], acts, ("int8",)))
    return {act: sum(took[f"{act} int8 {part}"] for part in PARTS) for act in acts}


def compiled() -> dict[str, float]:
    """Milliseconds of encoder and decoder by Vela, from `benchmarks.compilers`; blocks without CPU operators alone."""
    path = RESULTS / "compilers.json"
    verdicts = json.loads(path.read_text())["verdicts"] if path.exists() else {}
    parts = {act: [each["figures"] for each in found if each["target"] == CORE] for act, found in verdicts.items()}
    whole = {act: each for act, each in parts.items() if not any(part["CPU operators"] for part in each)}
    return {act: sum(part["ms"] for part in each) for act, each in whole.items()}


def averages(study: Study, name: str) -> dict[str, float]:
    """Means over pictures."""
    rows = study.figures(name) or []
    return {key: round(mean(row[key] for row in rows), 5) for key in ("psnr", "ms_ssim", "bpp", "bpp_estimated")}


def finished(study: Study, act: str, seed: int, way: str = "") -> list[str]:
    """A block's runs at its best rate, a lambda each; `way` "float" or "int8": those that went on from there."""
    names = [study.block(act, x, seed, study.rate(act)).name for x in study.budget.lambdas]
    return [f"{name}-{way}" if way else name for name in names]


def rd_curve(study: Study, names: list[str]) -> Curve:
    """The curve of runs."""
    points = [averages(study, name) for name in names]
    return curve(names[0], [Point(each["bpp"], each["psnr"]) for each in points])


def losses(study: Study, act: str, way: str = "") -> list[float]:
    """The RD loss at each lambda, the mean over seeds."""
    b = study.budget
    runs = [finished(study, act, seed, way) for seed in (b.int8_seeds if way else b.seeds)]
    return [mean(study.rd_loss(run[i], x) for run in runs) for i, x in enumerate(b.lambdas)]


def percent(study: Study, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
    """How much higher a block's RD loss is than another's, at each lambda; (block, way) both."""
    pairs = zip(losses(study, *ours), losses(study, *theirs), strict=True)
    return [100 * (a / b - 1) for a, b in pairs]


def bd_rates(study: Study, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
    """BD-rate in percent, a seed each; those that the curves do not allow are left out."""
    found = []
    (act, way), (other, other_way) = ours, theirs
    for seed in study.budget.int8_seeds if way else study.budget.seeds:
        try:
            found.append(
                difference_of(
                    (study, finished(study, act, seed, way)), (study, finished(study, other, seed, other_way))
                )
            )
        except NoDifference:
            continue
    return found


def difference_of(ours: tuple[Study, list[str]], theirs: tuple[Study, list[str]]) -> float:
    """BD-rate in percent of some runs of a study against runs of a study.

    Raises:
        NoDifference: the curves do not allow it.
    """
    return difference(rd_curve(*ours), rd_curve(*theirs)).bd_rate


def against_gdn(study: Study) -> dict[tuple[str, str], float]:
    """BD-rate in percent against GDN in float, the mean over seeds, by block and way (float, int8)."""
    b = study.budget
    found = {(act, "float"): bd_rates(study, (act, ""), (b.baseline, "")) for act in b.blocks}
    found |= {(act, "int8"): bd_rates(study, (act, "int8"), (b.baseline, "float")) for act in b.int8_blocks}
    return {(b.baseline, "float"): 0.0} | {which: mean(rates) for which, rates in found.items() if rates}


def drops(study: Study, act: str) -> list[float]:
    """PSNR in dB that putting a block in GDN's place costs before it trains, at each lambda."""
    return [
        averages(study, study.base(x))["psnr"] - averages(study, study.swap(act, x).name)["psnr"]
        for x in study.budget.lambdas
    ]


def block_row(study: Study, act: str, milliseconds: float) -> Row:
    """A block in float against GDN that went on for the same steps."""
    baseline = study.budget.baseline
    at_each = percent(study, (act, ""), (baseline, ""))
    rates = bd_rates(study, (act, ""), (baseline, ""))
    sides = {f"lambda {x:g}, %": each for x, each in zip(study.budget.lambdas, at_each, strict=True)}
    sides |= {f"BD-rate of seed {seed}, %": each for seed, each in zip(study.budget.seeds, rates, strict=False)}
    if study.budget.swaps:
        sides["dB lost by the swap"] = mean(drops(study, act))
    sides |= {"ms in int8": milliseconds, "learning rate": study.rate(act)}
    return Row(
        f"{act}: RD loss against GDN trained on for {study.budget.extra_steps:,} steps", mean(at_each), "%", sides=sides
    )


def int8_row(study: Study, act: str) -> Row:
    """A block in int8 against itself in float for the same steps, and against GDN in float."""
    b = study.budget
    rates = bd_rates(study, (act, "int8"), (act, "float"))
    sides = {f"of seed {seed}, %": each for seed, each in zip(b.int8_seeds, rates, strict=False)}
    sides["RD loss against it, %"] = mean(percent(study, (act, "int8"), (act, "float")))
    if act != b.baseline:
        sides["RD loss against GDN in float, %"] = mean(percent(study, (act, "int8"), (b.baseline, "float")))
    block = f"{act}, trained from random weights," if act == b.baseline else act
    what = f"{block} in int8, both transforms, {b.int8_steps:,} steps: BD-rate against its own float codec"
    return Row(what, mean(rates) if rates else float("nan"), "%", at_most=1.0, sides=sides)


def verdicts(study: Study) -> list[Row]:
    """The bars."""
    baseline = study.budget.baseline
    against = {act: percent(study, (act, ""), (baseline, "")) for act in study.budget.blocks if act != CONTROL}
    best = min(against, key=lambda act: mean(against[act]))
    relu = min((act for act in study.budget.blocks if act.startswith("relu")), key=lambda act: mean(against[act]))
    gates = [act for act in study.budget.blocks if act.startswith("gate")]
    gate = min(gates, key=lambda act: max(drops(study, act)))
    what = f"RD loss against GDN trained on for the same {study.budget.extra_steps:,} steps"
    rows = [
        Row(f"{what}: {best}, the best without division, mean of lambdas", mean(against[best]), "%", at_most=-1.0),
        Row(f"{what}: {best}, at its worst lambda", max(against[best]), "%", at_most=0.0),
        Row(f"{what}: ReLU everywhere, best recipe ({relu})", mean(against[relu]), "%", at_most=3.0),
        Row(
            f"PSNR lost by the swap to {gate} with a distilled start, worst lambda",
            max(drops(study, gate)),
            "dB",
            at_most=0.1,
        ),
    ]
    if study.budget.int8_blocks:
        int8 = {act: mean(percent(study, (act, "int8"), (baseline, "float"))) for act in study.budget.int8_blocks}
        best = min(int8, key=lambda act: int8[act])
        rows.append(Row(f"{what}: {best} in int8, GDN in float", int8[best], "%", at_most=0.0))
    return rows


def tables_row(study: Study) -> Row:
    """How far files are from what their likelihoods say."""
    pictures = [row for path in study.folder.glob("*/figures.json") for row in study.figures(path.parent.name) or []]
    off = max(100 * abs(row["bpp"] / row["bpp_estimated"] - 1) for row in pictures if row["bpp"] > ENOUGH_BPP)
    what = f"real bpp off estimated bpp, worst of {len(pictures)} pictures and codecs"
    return Row(what, off, "%", at_most=1.0)


def draw(study: Study, milliseconds: dict[str, float], path: Path) -> None:
    """A plot: what each block costs in bits against what it costs in time, in two places, and the curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (runtime, vela, curves) = plt.subplots(1, 3, figsize=(18, 5), layout="constrained")
    colours = {act: f"C{k}" for k, act in enumerate(study.budget.acts)}
    rates = against_gdn(study)
    for axis, where, took in (
        (runtime, "ONNX Runtime, 768x512", milliseconds),
        (vela, f"{CORE} by Vela, 224x224", compiled()),
    ):
        for (act, way), rate in rates.items():
            if act not in took:
                continue
            axis.scatter(took[act], rate, color=colours[act] if way == "float" else "none", edgecolors=colours[act])
            if way == "float":
                axis.annotate(act, (took[act], rate), xytext=(5, -12), textcoords="offset points")
        axis.axhline(0, color="grey", lw=0.8)
        axis.set_yscale("symlog", linthresh=5)
        axis.set(ylim=(-10, 100), yticks=(-5, -2, 0, 2, 5, 20, 50), yticklabels=(-5, -2, 0, 2, 5, 20, 50))
        axis.set(title="trained in float (filled) and for int8 (hollow)", ylabel="BD-rate against GDN in float, %")
        axis.set_xlabel(f"ms in int8, encoder + decoder, {where}")
    for act, colour in colours.items():
        points = rd_curve(study, finished(study, act, study.budget.seeds[0])).points
        curves.plot([each.bpp for each in points], [each.psnr for each in points], colour, marker=".", label=act)
    curves.set(xlabel="bits per pixel, real bytes", ylabel="PSNR, dB")
    curves.legend()
    for axis in (runtime, vela, curves):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
