"""`python -m benchmarks.memory`: the memory of a training run that is its own, over 1,000 rows and over 118,000.

RssAnon is what a process holds beyond mapped files, whose pages the kernel may take back at any time; the loader's
workers are counted in. The large dataset lists the small one's Arrow files many times.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import Row, publish
from benchmarks.pictures import prepared

SMALL, LARGE = 1_000, 118_000
STEPS = 300
SETTLED = 100  # steps before the first look
POLL_SECONDS = 0.05
CODEC = ("--pretrained", "false", "--N", "32", "--M", "48", "--loss_type", "mse", "--batch_size", "4")


def main() -> None:
    """With the reading thread and with two worker processes."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        small = prepared(folder, SMALL // 5)  # of five photographs
        large = repeated(small, folder / "large", LARGE // SMALL)
        for workers in (0, 2):
            held = {
                f"{rows:,} rows, MB": rss_anon_mb(coco224, folder / f"{rows}-{workers}", workers)
                for coco224, rows in ((small, SMALL), (large, LARGE))
            }
            few, many = held.values()
            what = f"RssAnon while training, {LARGE:,} rows against {SMALL:,}, --num_workers {workers}"
            rows.append(Row(what, many / few, "x", at_most=1.05, sides=held))
    publish("memory", rows)


def repeated(coco224: Path, out: Path, times: int) -> Path:
    """A dataset whose training split names the Arrow files of another so many times."""
    shutil.copytree(coco224, out)
    path = out / "train" / "state.json"
    state = json.loads(path.read_text())
    state["_data_files"] *= times
    path.write_text(json.dumps(state))
    return out


def rss_anon_mb(coco224: Path, folder: Path, workers: int) -> float:
    """The median over the later steps of a run of `train_accel.py`, all its processes together."""
    metrics = folder / "metrics.jsonl"
    words = ["--coco_dir", coco224, "--save_dir", folder, "--recon_dir", folder / "recon", "--num_workers", workers]
    words += [*CODEC, "--max_steps", STEPS, "--eval_every", 0, "--recon_every", 0, "--log_every", 1]
    run = subprocess.Popen(
        [sys.executable, "train_accel.py", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = []
    while run.poll() is None:
        time.sleep(POLL_SECONDS)
        if metrics.exists() and metrics.read_text().count("\n") > SETTLED:
            seen.append(sum(map(rss_anon, family(run.pid))) / 1e3)
    assert run.returncode == 0
    return median(seen)


def family(pid: int) -> list[int]:
    """A process and its children's children, of those that have not ended."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        found = []
    return [pid, *(each for child in found for each in family(int(child)))]


def rss_anon(pid: int) -> float:
    """In kB; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(float(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
