"""`python -m benchmarks.curves [--coco_dir COCO_ROOT]`: speed changes no result, by two ways of two seeds each."""

import itertools
import json
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, Row, publish
from benchmarks.pictures import CROPS, prepared
from benchmarks.trainer import COMMON
from coco224.photographs.sample import SAMPLE
from train_accel import main as train

STEPS, WINDOW = 300, 30
COCO_CROPS = 4  # of each photograph: a COCO root has many, the sample five
SEEDS = (0, 1)
CODEC = ("--act", "gdnish", "--N", 16, "--M", 24, "--loss_type", "rd", "--lr", 1e-3)
LENGTH = ("--batch_size", 4, "--input_size", 176, "--epochs", 1000, "--max_steps", STEPS)
OUTPUT = ("--log_every", 1, "--eval_every", 0, "--recon_every", 0)
WAYS = {
    "fast": ("--amp", "true", "--channels_last", "true", "--compile", "true"),
    "plain FP32": ("--amp", "false", "--channels_last", "false", "--compile", "false"),
}


def main() -> None:
    """Four runs of a small codec; means of the loss over windows of steps."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--coco_dir", default=SAMPLE, help="a COCO root, or sample: the embedded photographs [sample]")
    coco_dir = parser.parse_args().coco_dir
    with TemporaryDirectory() as name:
        coco224 = prepared(Path(name), CROPS if coco_dir == SAMPLE else COCO_CROPS, coco_dir)
        losses = {
            (way, seed): run(coco224, Path(name) / f"{way}-{seed}", seed, options)
            for (way, options), seed in itertools.product(WAYS.items(), SEEDS)
        }
    draw(losses)
    dataset = Path(coco_dir).resolve().name
    details = {"losses": {f"{way}, seed {seed}": loss.round(5).tolist() for (way, seed), loss in losses.items()}}
    publish("curves", [compared(losses, dataset)], {"dataset": dataset} | details)


def compared(losses: Mapping[tuple[str, int], NDArray[np.float64]], dataset: str) -> Row:
    """How far apart the two ways are, over how far the two seeds are: the largest difference of windows' means."""
    windows = {key: loss.reshape(-1, WINDOW).mean(1) for key, loss in losses.items()}
    between_ways = max(np.abs(windows["fast", seed] - windows["plain FP32", seed]).max() for seed in SEEDS)
    between_seeds = np.abs(windows["plain FP32", 0] - windows["plain FP32", 1]).max()
    sides = {
        "largest difference of the ways": float(between_ways),
        "of the seeds": float(between_seeds),
        "last loss, fast": float(windows["fast", 0][-1]),
        "plain FP32": float(windows["plain FP32", 0][-1]),
    }
    curves = f"loss curves over {STEPS} steps on {dataset}"
    what = f"{curves}: the fast path against plain FP32, over two seeds against each other"
    return Row(what, float(between_ways / between_seeds), "x", at_most=1.0, sides=sides)


def run(coco224: Path, folder: Path, seed: int, options: tuple[object, ...]) -> NDArray[np.float64]:
    """The loss of each step of a training run."""
    files = ("--coco_dir", coco224, "--save_dir", folder, "--recon_dir", folder / "recon", "--seed", seed)
    status = train([str(word) for word in (*files, *COMMON, *CODEC, *LENGTH, *OUTPUT, *options)])
    assert status == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if row["kind"] == "train"])


def draw(losses: dict[tuple[str, int], NDArray[np.float64]]) -> None:
    """`results/curves.png`: all four curves, smoothed over a window."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (way, seed), loss in losses.items():
        smooth = np.convolve(loss, np.full(WINDOW, 1 / WINDOW), "valid")
        axis.plot(np.arange(WINDOW, STEPS + 1), smooth, label=f"{way}, seed {seed}", ls="-" if way == "fast" else "--")
    axis.set(xlabel="optimizer step", ylabel=f"loss, mean of {WINDOW} steps", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
