"""Tables of the README and of docs/npu.md, and the README's plot, out of the kept results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import RESULTS
from codec.evaluation.curves import Point, curve, difference
from export.chips.judge import ORT_PSNR, PSNR, ROUNDED

BLOCKS = {
    "gdn": "GDN, the original",
    "relu": "`relu`",
    "gate": "`gate`",
    "relu_mlp": "`relu_mlp`",
    "gate_mlp": "`gate_mlp`",
}
INT8 = "int8_bmshj2018_factorized"
FILES = ("rd_study_cpu_long", "deployment", "families", "rd_study_cpu_int8", INT8)

SOURCES = """\
**BD-rate**: percent more bytes than GDN for the same PSNR; negative is better. On Kodak, with real files, small codecs
({small}): each block replaces every GDN of a trained codec and trains {steps:,} steps; GDN trains on for as many
({rd_study_cpu_long}). **In int8**: all rates, {int8_size}, the embedded codec, {int8_steps} steps for int8
({int8_bmshj2018_factorized}; [docs/study.md](docs/study.md#what-int8-costs-a-block)); trained `relu` loses {relu:.1f} %
({rd_study_cpu_int8}). **Time**: encoder + decoder of 768x512, {large}, ONNX Runtime with {threads} threads on
{cpu}; GDN in float takes {gdn:.0f} ms ({deployment}).
**Chip families**: five NPU vendors, TensorRT and ONNX Runtime's int8 kernels, by their operator lists ({families})."""


@dataclass(frozen=True)
class Figures:
    """What is known of a block.

    Attributes:
        rate: BD-rate in percent against GDN in float, the mean of the seeds.
        rate_in_int8: the same of the block in int8, in the study of int8; None where it was not measured.
        milliseconds: encoder and decoder of 768x512 in int8, ONNX Runtime.
        families: "n of m" chip families take every node.
    """

    rate: float
    rate_in_int8: float | None
    milliseconds: float
    families: str


def kept(name: str) -> Any:
    """A result, as its file has it."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def figures(act: str) -> Figures:
    """A block's figures from the kept results."""
    measured = act in kept(INT8)["budget"]["blocks"]
    return Figures(
        rate=bd_rate(kept("rd_study_cpu_long"), act),
        rate_in_int8=row(INT8, f"bmshj2018_factorized, {act} in int8:")["value"] if measured else None,
        milliseconds=row("deployment", f"{act} int8,")["value"],
        families="{value:g} {unit}".format(**row("families", f"{act}:")),
    )


def row(name: str, begins: str) -> dict[str, Any]:
    """The one row of a result that begins so."""
    (found,) = (each for each in kept(name)["rows"] if each["what"].startswith(begins))
    return dict(found)


def bd_rate(study: Any, act: str) -> float:
    """BD-rate in percent of a block against GDN, both in float, the mean of the seeds."""
    seeds = study["budget"]["seeds"]
    return mean(difference(rd_curve(study, act, seed), rd_curve(study, "gdn", seed)).bd_rate for seed in seeds)


def rd_curve(study: Any, act: str, seed: int) -> Any:
    """The curve of a block's runs."""
    rate = study["learning rates"][act]
    runs = [study["runs"][f"{act}-{x}-seed{seed}-lr{rate:g}"] for x in study["budget"]["lambdas"]]
    return curve(act, [Point(run["bpp"], run["psnr"]) for run in runs])


def table() -> str:
    """The table, and where its figures come from, in Markdown."""
    lines = [
        "| block | BD-rate against GDN | BD-rate in int8 | time in int8 | chip families that take every node |",
        "| --- | --: | --: | --: | --: |",
    ]
    for act, name in BLOCKS.items():
        of = figures(act)
        rate = f"{of.rate:+.1f} %" if of.rate else "0"
        in_int8 = "not measured" if of.rate_in_int8 is None else f"{of.rate_in_int8:+.1f} %"
        lines.append(f"| {name} | {rate} | {in_int8} | {of.milliseconds:.0f} ms | {of.families} |")
    return "\n".join(lines) + "\n\n" + sources()


def sources() -> str:
    """What was measured, on which machine, and the files that hold it."""
    study, times = kept("rd_study_cpu_long"), kept("deployment")
    budget, of_int8 = study["budget"], kept(INT8)["budget"]
    return SOURCES.format(
        **{name: f"[{name}.json](benchmarks/results/{name}.json)" for name in FILES},
        small=f"N={budget['N']}, M={budget['M']}",
        steps=budget["extra_steps"],
        int8_size=f"N={of_int8['N']}, M={of_int8['M']}",
        int8_steps=of_int8["int8_steps"],
        relu=kept("rd_study_cpu_int8")["rows"][0]["value"],
        large=f"N={times['N']}, M={times['M']}",
        threads=times["threads of ONNX Runtime"],
        cpu=times["machine"]["cpu"],
        gdn=row("deployment", "gdn float,")["value"],
    )


def demo() -> str:
    """What the demo's last screen says, in Markdown, and where it was measured."""
    found = kept("demo")
    summary, machine = found["summary"], found["machine"]
    lines = [
        "| codec | PSNR | MS-SSIM | encoder + decoder | nodes left to the CPU |",
        "| --- | --: | --: | --: | --- |",
    ]
    for row in summary["codecs"]:
        left = {each["family"]: each.get(row["codec"].split(",")[0]) for each in summary["chips"]}
        some = [f"{family} {count}" for family, count in left.items() if count]
        unknown = None in left.values()
        spent = "" if row["ms"] is None else f"{row['ms']:.0f} ms"
        of_chips = "" if unknown else ", ".join(some) or "none"
        lines.append(f"| {row['codec']} | {row['psnr']:.2f} dB | {row['ms_ssim']:.4f} | {spent} | {of_chips} |")
    minutes = next(each["value"] for each in found["rows"] if each["unit"] == "min")
    return "\n".join(
        [
            *lines,
            "",
            f"`{summary['photograph']}` in {summary['target_bpp']} bits per pixel; ONNX Runtime with 2 threads on "
            f"{machine['cpu']};",
            f"{len(summary['chips'])} families of chips, by their operator lists. The demo took {minutes:.1f} minutes "
            "([demo.json](benchmarks/results/demo.json)).",
        ]
    )


def chips() -> str:
    """What the compilers say of the codecs of `benchmarks.chips`, in Markdown, and where it was measured."""
    found = kept("chips")
    by_codec = {
        codec: {(each["target"], each["part"]): each for each in verdicts}
        for codec, verdicts in found["verdicts"].items()
    }
    (trained, embedded), (_, relu) = by_codec.items()
    lines = [
        f"| chip | ReLU: encoder, decoder | {trained}: encoder, h_a, decoder "
        "| equal: y in whole numbers, bytes of x_hat | PSNR of x_hat |",
        "| --- | --- | --- | --- | --- |",
    ]
    for target in dict.fromkeys(target for target, _ in embedded):
        parts = [embedded[target, part] for part in ("encoder", "h_a", "decoder")]
        of_relu = [relu[target, part] for part in ("encoder", "decoder")]
        encoder, decoder = parts[0]["difference"], parts[-1]["difference"]
        equal = f"{encoder[ROUNDED]}, {decoder['equal, %']} %" if encoder else "not simulated"
        lost = f"{decoder[PSNR] - decoder[ORT_PSNR]:+.2f} dB" if decoder else ""
        lines.append(f"| `{target}` | {_estimates(of_relu)} | {_estimates(parts)} | {equal} | {lost} |")
    machine = found["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"256x256, {machine['date']}, commit {machine['commit']} ([chips.json](../benchmarks/results/chips.json)).",
        ]
    )


def _estimates(parts: Sequence[Mapping[str, Any]]) -> str:
    """Time of each part, in words, or that some part is not all on the chip."""
    if any(each["complaint"] for each in parts):
        return "NOT all on the chip"
    for unit in ("ms", "Mcycles"):
        if all(unit in each["figures"] for each in parts):
            return ", ".join(format(each["figures"][unit], ".3g") for each in parts) + f" {unit}"
    return "all on the chip"


def draw(path: Path) -> None:
    """A plot of the table: bytes against time, in float (filled) and in int8 (hollow)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.axhline(0, color="grey", lw=0.8)
    for k, act in enumerate(BLOCKS):
        of, colour = figures(act), f"C{k}"
        axis.scatter(of.milliseconds, of.rate, color=colour, zorder=3)
        if of.rate_in_int8 is not None:
            axis.scatter(of.milliseconds, of.rate_in_int8, color="white", edgecolors=colour, zorder=3)
        axis.annotate(act, (of.milliseconds, of.rate), xytext=(8, -4), textcoords="offset points", color=colour)
    axis.scatter([], [], color="black", label="the block in float")
    axis.scatter([], [], color="white", edgecolors="black", label="in int8, from the embedded codec")
    axis.set_yscale("symlog", linthresh=5)
    axis.set(ylim=(-8, 100), yticks=(-5, -2, 0, 2, 5, 20, 50), yticklabels=("-5", "-2", "0", "2", "5", "20", "50"))
    times = [figures(act).milliseconds for act in BLOCKS]
    axis.set(xlim=(0.8 * min(times), 1.15 * max(times)))
    axis.set(xlabel="encoder + decoder of 768x512 in int8, ms (ONNX Runtime, two CPU cores)")
    axis.set_ylabel("BD-rate against GDN in float, %")
    axis.set_title("bytes for the same PSNR: lower is better", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
