"""`python -m benchmarks.study.run --coco_dir DIR --images DIR --out DIR`: what each block costs in quality.

A GDN codec is trained at each lambda. From it, every block (distilled start where it can learn from its GDN) trains on
for the same steps at each learning rate of a sweep, and at its best one with every lambda and seed; GDN itself goes on
for the same steps, and so does the linear control. From there, int8: quantization-aware training against the same steps
in float. Every codec is measured on --images through files that are written and read again.

The runs are runs of `train_accel.py`. After --minutes they stop with a checkpoint, the status is 75, and the same
command goes on. The last step writes `results/rd_study.json` and `.png`.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from coco224.files import whole_or_absent

PLUGIN = Path(__file__).with_name("study_blocks.py")
CONTROL = "linear"
WITHOUT_MAP = ("gdn", "relu")  # nothing that a distilled start could teach
MINMAX = ("relu", "shelf")  # blocks without heavy tails: int8 ranges hold all that passed, and nothing is cut
PREEMPTED = os.EX_TEMPFAIL


@dataclass(frozen=True)
class Budget:
    """How large and how long.

    Attributes:
        first_steps: of the first codec, from random weights, with the lambda in the middle.
        base_steps: of the codecs of the other lambdas, from that one, and of itself once more.
        extra_steps: of each block, and of the baseline, from there.
        int8_steps: of quantization-aware training, and of float training, from there.
        jobs: runs side by side.
        baseline: what the first codec has, and all others begin as.
    """

    N: int
    M: int
    batch_size: int
    input_size: int
    first_steps: int
    base_steps: int
    distill_steps: int
    extra_steps: int
    int8_steps: int
    lambdas: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    int8_seeds: tuple[int, ...]
    blocks: tuple[str, ...]
    int8_blocks: tuple[str, ...]
    jobs: int
    baseline: str = "gdn"

    @property
    def middle(self) -> float:
        """The lambda of the first codec and of the sweep."""
        return self.lambdas[len(self.lambdas) // 2]

    @property
    def acts(self) -> tuple[str, ...]:
        """The baseline and the blocks."""
        return (self.baseline, *self.blocks)


CPU = Budget(
    N=48,
    M=64,
    batch_size=8,
    input_size=128,
    first_steps=12_000,
    base_steps=6000,
    distill_steps=60,
    extra_steps=600,
    int8_steps=300,
    lambdas=(0.0035, 0.0067, 0.013, 0.025),
    rates=(1e-4, 3e-4, 1e-3),
    seeds=(0, 1),
    int8_seeds=(0, 1),
    blocks=("linear", "relu", "shelf", "gdnish", "gate", "gate_grouped", "gate_pieces", "gate_local"),
    int8_blocks=("relu", "shelf", "gate", "gate_local"),
    jobs=2,
)
BUDGETS = {
    "cpu": CPU,
    "cpu_long": replace(
        CPU,
        distill_steps=200,
        extra_steps=1800,
        int8_steps=600,
        rates=(3e-4, 1e-3, 3e-3),
        blocks=("linear", "relu", "relu_mlp", "gate", "gate_mlp"),
        int8_blocks=("relu", "relu_mlp", "gate", "gate_mlp"),
    ),
    "cpu_int8": replace(
        CPU,
        first_steps=8000,
        base_steps=3000,
        extra_steps=300,
        int8_steps=600,
        rates=(5e-4,),
        blocks=(),
        int8_blocks=("relu",),
        baseline="relu",
    ),
    "gpu": replace(
        CPU,
        N=128,
        M=192,
        batch_size=32,
        input_size=224,
        first_steps=60_000,
        base_steps=20_000,
        distill_steps=300,
        extra_steps=5_000,
        int8_steps=3_000,
        blocks=("linear", "relu", "relu_mlp", "gdnish", "gate", "gate_mlp"),
        int8_blocks=("relu", "relu_mlp", "gate", "gate_mlp"),
        jobs=1,
    ),
    "smoke": replace(
        CPU,
        N=8,
        M=12,
        batch_size=2,
        input_size=64,
        first_steps=3,
        base_steps=2,
        distill_steps=1,
        extra_steps=2,
        int8_steps=10,
        lambdas=(0.005, 0.02),
        rates=(1e-3,),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: its options, and the run whose last checkpoint it starts from (None: random weights)."""

    name: str
    lambda_mse: float
    steps: int
    options: tuple[object, ...]
    start: str | None = None


class Study:
    """The jobs of a budget, in an order in which each finds what it starts from."""

    def __init__(self, budget: Budget, folder: Path) -> None:
        self.budget, self.folder = budget, folder

    def figures(self, name: str) -> list[dict[str, float]] | None:
        """A finished run's figures, a picture each; None where it is not finished."""
        path = self.folder / name / "figures.json"
        return json.loads(path.read_text()) if path.exists() else None

    def rd_loss(self, name: str, lambda_mse: float) -> float:
        """Mean over pictures of lambda 255^2 MSE + bpp: 8-bit pictures, real bytes."""
        rows = self.figures(name)
        assert rows is not None
        return sum(lambda_mse * 255**2 * 10 ** (-row["psnr"] / 10) + row["bpp"] for row in rows) / len(rows)

    def stages(self) -> Iterator[list[Job]]:
        """Jobs that may run side by side; a stage is made up when those before it are done."""
        b = self.budget
        first = ("--act", b.baseline, "--pretrained", "false", "--N", b.N, "--M", b.M, "--lr", 1e-3)
        yield [Job("first", b.middle, b.first_steps, (*first, "--lr_warmup_steps", min(200, b.first_steps - 1)))]
        yield [Job(self.base(x), x, b.base_steps, ("--act", b.baseline, "--lr", 5e-4), "first") for x in b.lambdas]
        yield [self.swap(act, x) for act in b.blocks for x in b.lambdas]
        yield [self.block(act, b.middle, b.seeds[0], rate) for act in b.acts for rate in b.rates]
        yield [self.block(act, x, s, self.rate(act)) for act in b.acts for x in b.lambdas for s in b.seeds]
        if b.int8_blocks:
            yield [
                self.further(act, x, s, int8)
                for act in dict.fromkeys((b.baseline, *b.int8_blocks))
                for x, s, int8 in product(b.lambdas, b.int8_seeds, (False, True))
                if not int8 or act in b.int8_blocks
            ]

    def block(self, act: str, lambda_mse: float, seed: int, rate: float) -> Job:
        """The baseline to a block and on; the baseline itself on."""
        name = f"{act}-{lambda_mse}-seed{seed}-lr{rate:g}"
        options = ("--act", act, *self.distilled(act), "--lr", rate, "--lr_warmup_steps", 20, "--seed", seed)
        return Job(name, lambda_mse, self.budget.extra_steps, options, self.base(lambda_mse))

    def swap(self, act: str, lambda_mse: float) -> Job:
        """A block as it starts: one step of a rate at which nothing moves."""
        options = ("--act", act, *self.distilled(act), "--lr", 1e-12, "--eb_aux", "false")
        return Job(f"{act}-{lambda_mse}-swap", lambda_mse, 1, options, self.base(lambda_mse))

    def distilled(self, act: str) -> tuple[object, ...]:
        """A distilled start, for blocks with something to learn."""
        return () if act in WITHOUT_MAP else ("--distill_steps", self.budget.distill_steps)

    def rate(self, act: str) -> float:
        """The learning rate of the sweep at which a block ended best."""
        b = self.budget
        return min(b.rates, key=lambda rate: self.rd_loss(self.block(act, b.middle, b.seeds[0], rate).name, b.middle))

    def further(self, act: str, lambda_mse: float, seed: int, int8: bool) -> Job:
        """On from a block's best run: in int8, both transforms, or in float."""
        start, steps = self.block(act, lambda_mse, seed, self.rate(act)).name, self.budget.int8_steps
        options: tuple[object, ...] = ("--act", act, "--lr", 2e-4, "--lr_warmup_steps", min(20, steps - 1))
        if int8:
            phases = ("--qat_calib_steps", steps // 10, "--qat_freeze_after", steps * 3 // 4)
            observer = "minmax" if act in MINMAX else "ema"
            options += ("--qat", "true", "--qat_scope", "all", "--qat_act_observer", observer, *phases)
        options += ("--seed", seed)
        return Job(f"{start}-{'int8' if int8 else 'float'}", lambda_mse, steps, options, start)

    def base(self, lambda_mse: float) -> str:
        """The run of the baseline's codec of a lambda."""
        return f"{self.budget.baseline}-{lambda_mse}"


@dataclass(frozen=True)
class Worker:
    """Trains and measures, in a process of its own.

    Attributes:
        deadline: when a run stops with a checkpoint, in the seconds of time.time().
    """

    study: Study
    images: str
    deadline: float

    def __call__(self, job: Job, threads: int) -> str:
        """One job, from where it was left; returns its name."""
        import torch

        from train_accel import main as train
        from training.precision import is_emulated

        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = self.study.folder / job.name
        b = self.study.budget
        left = self.deadline - time.time()
        if left <= 0:
            return job.name
        timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))  # the trainer's own way to stop
        timer.start()
        options = [
            *("--coco_dir", self.study.folder / "coco224", "--plugin", PLUGIN, "--save_dir", folder),
            *("--recon_dir", folder / "recon", "--replace_parts", "all", "--train_scope", "all"),
            *("--loss_type", "mse", "--lambda_mse", job.lambda_mse, "--batch_size", b.batch_size),
            *("--input_size", b.input_size, "--hflip", "true", "--epochs", 1_000_000, "--max_steps", job.steps),
            *("--eval_every", 0, "--recon_every", 0, "--checkpoint_every", 1000, "--log_every", 50),
            *(("--amp", "false") if is_emulated("bf16", device) else ()),
            *job.options,
        ]
        if job.start:
            options += ["--init_checkpoint", self.study.folder / job.start / "last.safetensors"]
        try:
            status = train([str(word) for word in options])
        finally:
            timer.cancel()
        if status not in (0, PREEMPTED):
            raise RuntimeError(f"{job.name} ended with status {status}")
        if status == 0:
            self.measure(folder)
        return job.name

    def measure(self, folder: Path) -> None:
        """Every picture through a file, to `figures.json`."""
        from codec.blocks import load_plugin
        from codec.checkpoint import open_codec
        from codec.evaluation.coded import through_files
        from codec.evaluation.pictures import open_pictures
        from codec.files import FileCodec

        load_plugin(PLUGIN)
        files = FileCodec(open_codec(folder / "last.safetensors"))
        decoded = through_files(files, open_pictures(self.images, None, True, 8).read(0, 1))
        rows = [
            {"psnr": each.figures.psnr, "ms_ssim": each.figures.ms_ssim, "bpp": each.figures.bpp}
            | {"bpp_estimated": each.figures.bpp_estimated}
            for each in sorted(decoded, key=lambda each: each.index)
        ]
        assert all(math.isfinite(value) for row in rows for value in row.values() if value is not None)
        with whole_or_absent(folder / "figures.json") as path:
            path.write_text(json.dumps(rows) + "\n")


def run(study: Study, images: str, deadline: float) -> bool:
    """Every stage; False where the time was up before the end."""
    worker = Worker(study, images, deadline)
    cores = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    for jobs in study.stages():
        todo = list({job.name: job for job in jobs if study.figures(job.name) is None}.values())
        if not todo:
            continue
        side_by_side = min(study.budget.jobs, len(todo))
        threads = max(1, cores // side_by_side)
        print(f"{len(todo)} runs of {todo[0].steps} steps: {todo[0].name} .. {todo[-1].name}", flush=True)
        with ProcessPoolExecutor(side_by_side, spawn, _quiet, (study.folder,)) as pool:
            for name in pool.map(worker, todo, [threads] * len(todo)):
                if rows := study.figures(name):
                    psnr, bpp = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "bpp"))
                    print(f"  {name}: {psnr:.3f} dB, {bpp:.4f} bpp", flush=True)
        if any(study.figures(job.name) is None for job in todo):
            return False
    return True


def _quiet(folder: Path) -> None:
    """What the runs print goes to a file beside them."""
    sys.stdout.flush()
    log = os.open(folder / f"log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def prepare(photographs: str, study: Study) -> None:
    """The training crops: four windows at native resolution of each photograph."""
    from coco224.prepare import main as prepare_crops

    out = study.folder / "coco224"
    if not out.exists():
        words = ["--coco_dir", photographs, "--out_dir", str(out), "--crop", "random", "--crops_per_image", "4"]
        assert prepare_crops([*words, "--include_val", "false"]) == 0


def main(argv: Iterable[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 75 where there is more to do."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco_dir", required=True, help="photographs to train on: a COCO root, or sample")
    parser.add_argument("--images", required=True, help="photographs to measure on, which are not among them")
    parser.add_argument("--out", type=Path, required=True, help="the runs; a second call goes on with them")
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="how large and how long [cpu]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these [never]")
    given = parser.parse_args(None if argv is None else list(argv))
    start = time.time()
    given.out.mkdir(parents=True, exist_ok=True)
    study = Study(BUDGETS[given.budget], given.out)
    prepare(given.coco_dir, study)
    if not run(study, given.images, start + 60 * given.minutes):
        print("the time is up; the same command goes on")
        return PREEMPTED
    from benchmarks.study.summary import summarize

    summarize(study, given.images, given.budget)
    return 0


if __name__ == "__main__":
    sys.exit(main())
