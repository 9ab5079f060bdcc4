"""`python -m benchmarks.ddp`: two DDP processes of one thread each against one process of one thread, on CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import ROOT, Row, publish
from benchmarks.pictures import prepared
from benchmarks.step import MSE

ROUNDS = 3
STEPS = 10
WARMUP = 2  # steps: the first compiles
TWO_RANKS = ("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/ddp.yaml", "--num_processes", 2)


def main() -> None:
    """Runs of the real command that alternate: one, two that know nothing of each other, two ranks of one run."""
    rates: dict[str, list[float]] = {}
    with TemporaryDirectory() as name:
        coco224 = prepared(Path(name))
        folders = [Path(name) / "a", Path(name) / "b"]
        for _ in range(ROUNDS):
            one = rate(start(coco224, folders[0]), folders[0])
            apart = [start(coco224, folder) for folder in folders]
            floor = sum(rate(*run) for run in zip(apart, folders, strict=True))
            two = rate(start(coco224, folders[0], *TWO_RANKS), folders[0])
            for side, value in (("one process", one), ("two apart", floor), ("two ranks", two)):
                rates.setdefault(side, []).append(value)
    one, floor, two = (median(values) for values in rates.values())
    sides = {f"{side}, pictures/s": median(values) for side, values in rates.items()}
    note = f"two processes that share nothing but the machine give {floor / one:.3g} x"
    rows = [
        Row("two DDP processes of one thread over one", two / one, "x", at_least=1.9, sides=sides, note=note),
        Row("the same over two processes that share nothing but the machine", two / floor, "x"),
    ]
    publish("ddp", rows)


def start(coco224: Path, folder: Path, *launcher: object) -> subprocess.Popen[bytes]:
    """A run of the training command."""
    words = ["train_accel.py", "--act", "relu", *MSE, "--overwrite", "true", "--max_steps", STEPS]
    files = ["--coco_dir", coco224, "--save_dir", folder, "--recon_dir", folder / "recon"]
    quiet = ["--log_every", 1, "--eval_every", 0, "--recon_every", 0]
    command = [sys.executable, *map(str, [*launcher, *words, *files, *quiet])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)


def rate(run: subprocess.Popen[bytes], folder: Path) -> float:
    """The median of the pictures/s that a finished run's record gives, its first steps left out."""
    assert run.wait() == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(median([row["images_per_second"] for row in rows if row["kind"] == "train"][WARMUP:]))


if __name__ == "__main__":
    main()
