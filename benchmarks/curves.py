"""`python -m benchmarks.curves [--coco_dir DIR]`: speed changes no result, by two ways of two seeds each."""

import itertools
import json
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np

from benchmarks.harness import RESULTS, Row, publish
from benchmarks.pictures import prepared
from benchmarks.trainer import COMMON
from train_accel import main as train

STEPS, WINDOW = 300, 30
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
    parser.add_argument("--coco_dir", type=Path, help="a prepared dataset [the embedded photographs]")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        coco224 = given.coco_dir or prepared(Path(name))
        losses = {
            (way, seed): run(coco224, Path(name) / f"{way}-{seed}", seed, options)
            for (way, options), seed in itertools.product(WAYS.items(), SEEDS)
        }
    windows = {key: loss.reshape(-1, WINDOW).mean(1) for key, loss in losses.items()}
    between_ways = max(np.abs(windows["fast", seed] - windows["plain FP32", seed]).max() for seed in SEEDS)
    between_seeds = np.abs(windows["plain FP32", 0] - windows["plain FP32", 1]).max()
    draw(losses)
    what = f"loss curves over {STEPS} steps: the fast path against plain FP32, over two seeds against each other"
    sides = {
        "largest difference of the ways": float(between_ways),
        "of the seeds": float(between_seeds),
        "last loss, fast": float(windows["fast", 0][-1]),
        "plain FP32": float(windows["plain FP32", 0][-1]),
    }
    details = {"losses": {f"{way}, seed {seed}": loss.round(5).tolist() for (way, seed), loss in losses.items()}}
    publish("curves", [Row(what, float(between_ways / between_seeds), "x", at_most=1.0, sides=sides)], details)


def run(coco224: Path, folder: Path, seed: int, options: tuple[object, ...]) -> np.ndarray:
    """The loss of each step of a training run."""
    files = ("--coco_dir", coco224, "--save_dir", folder, "--recon_dir", folder / "recon", "--seed", seed)
    status = train([str(word) for word in (*files, *COMMON, *CODEC, *LENGTH, *OUTPUT, *options)])
    assert status == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if row["kind"] == "train"])


def draw(losses: dict[tuple[str, int], np.ndarray]) -> None:
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
