"""The study's runs: each trains and measures a codec in a process of its own, and goes on where it was stopped."""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.study.plan import PLUGIN, Job, Study
from coco224.files import whole_or_absent
from training.preempt import PREEMPTED

if TYPE_CHECKING:
    from torch import Tensor

    from codec.network.codec import Codec

RATES = 4
"""At which a codec of several rates is measured."""


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
        if not job.steps:
            self.quantize(job)
            return job.name
        timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))  # the trainer's own way to stop
        timer.start()
        options = [
            *("--coco_dir", self.study.crops, "--plugin", PLUGIN, "--save_dir", folder),
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

    def quantize(self, job: Job) -> None:
        """Quantization after training, on 64 of the crops; measures the codec."""
        from codec.checkpoint import open_codec
        from codec.description.architecture import Quantization
        from codec.quantization.calibrate import CALIBRATION_PICTURES, calibrate

        assert job.start
        codec = open_codec(self.study.folder / job.start / "last.safetensors")
        pictures = training_crops(self.study, CALIBRATION_PICTURES).split(1)
        quantization = Quantization("all", hyper="h_a" in codec.entropy_models)  # as `export --calib_dir` does
        folder = self.study.folder / job.name
        folder.mkdir(exist_ok=True)
        self.measure(folder, calibrate(codec, pictures, quantization))

    def measure(self, folder: Path, codec: "Codec | None" = None) -> None:
        """Every picture through a file, to `figures.json`; at four rates, if the codec has several."""
        from codec.blocks import load_plugin
        from codec.checkpoint import open_codec
        from codec.evaluation.coded import through_files
        from codec.evaluation.compare import numbers_of
        from codec.evaluation.pictures import open_pictures
        from codec.files import FileCodec

        load_plugin(PLUGIN)
        codec = codec or open_codec(folder / "last.safetensors")
        files, rows = FileCodec(codec), []
        for rate in numbers_of(codec, RATES):
            decoded = through_files(files, open_pictures(self.images, None, True, 8).read(0, 1), rate=rate)
            rows += [
                {"psnr": each.figures.psnr, "ms_ssim": each.figures.ms_ssim, "bpp": each.figures.bpp}
                | {"bpp_estimated": each.figures.bpp_estimated, "rate": rate}
                for each in sorted(decoded, key=lambda each: each.index)
            ]
        assert all(math.isfinite(value) for row in rows for value in row.values() if value is not None)
        with whole_or_absent(folder / "figures.json") as path:
            path.write_text(json.dumps(rows) + "\n")


def run(study: Study, images: str, deadline: float) -> bool:
    """Every stage; False where the time was up before the end."""
    return all(run_stage(study, jobs, images, deadline) for jobs in study.stages())


def run_stage(study: Study, jobs: list[Job], images: str, deadline: float) -> bool:
    """Those of the jobs that are not finished; False where the time was up before the end."""
    todo = list({job.name: job for job in jobs if study.figures(job.name) is None}.values())
    if not todo:
        return True
    worker = Worker(study, images, deadline)
    side_by_side = min(study.budget.jobs, len(todo))
    threads = max(1, len(os.sched_getaffinity(0)) // side_by_side)
    print(f"{len(todo)} runs of {todo[0].steps} steps: {todo[0].name} .. {todo[-1].name}", flush=True)
    study.folder.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, spawn, _quiet, (study.folder,)) as pool:
        for name in pool.map(worker, todo, [threads] * len(todo)):
            if rows := study.figures(name):
                psnr, bpp = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "bpp"))
                print(f"  {name}: {psnr:.3f} dB, {bpp:.4f} bpp", flush=True)
    return all(study.figures(job.name) is not None for job in todo)


def _quiet(folder: Path) -> None:
    """What the runs print goes to a file beside them."""
    sys.stdout.flush()
    log = os.open(folder / f"log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def training_crops(study: Study, count: int) -> "Tensor":
    """Some of the crops that all runs train on, float [count, 3, S, S] in [0, 1], S the runs' --input_size."""
    import numpy as np
    import torch

    from coco224.dataset import open_split
    from codec.network.pixels import to_float

    rows = open_split(study.crops, "train")
    assert rows is not None
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    zeros = np.zeros_like(chosen)
    pixels = rows.read(chosen, zeros, zeros, study.budget.input_size)
    return to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def prepare(photographs: str, crops: Path, size: int) -> None:
    """The training crops: four windows [size, size] at native resolution of each photograph."""
    from coco224.prepare import main as prepare_crops

    if not crops.exists():
        words = ["--coco_dir", photographs, "--out_dir", str(crops), "--crop", "random", "--crops_per_image", "4"]
        assert prepare_crops([*words, "--size", str(size), "--include_val", "false"]) == 0
