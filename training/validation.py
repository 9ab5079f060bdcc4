"""Evaluation during a run, shared among the ranks, on a copy with new CDF tables; and reconstructions."""

import contextlib
import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coco224.batches import EvalBatches
from coco224.files import whole_or_absent
from coco224.reading.rows import Pixels
from codec.evaluation.figures import Figures, evaluate, means, sums_and_counts
from codec.hub.repository import RECONSTRUCTIONS
from codec.network.codec import Codec
from codec.network.pixels import to_uint8
from training.distributed import sum_over_ranks
from training.preempt import Preempted, Stopped, StopSignal
from training.qat import about_latent, forget_clamped
from training.rates import drawn_rates
from training.record import Record
from training.run import Run

BEFORE = "pre"  # the reconstructions before the first step


def validate(run: Run, record: Record, stop: StopSignal, codec: Codec, epoch: int) -> None:
    """Evaluates the codec (`run.shipped()`) on the complete validation split and records the result.

    All batches have one shape, so that a compiled codec is compiled once. The pictures are spread over the rates of a
    codec that has several.

    Raises:
        Stopped: a signal reached a rank; nothing was recorded.
    """
    assert run.data.validation is not None
    step, accelerator = run.progress.step, run.accelerator
    shares = EvalBatches(run.data.validation, run.eval_batch, accelerator.process_index, accelerator.num_processes)
    pictures, places = itertools.tee(itertools.takewhile(lambda _: not stop.name, shares))
    draw = partial(drawn_rates, run.codec.architecture.rates, run.options.numerics.seed, 0)
    rates = (draw(batch.places) for batch in places)
    mine: list[Figures] = []
    forget_clamped(codec)
    with contextlib.suppress(Preempted), stop.at_once():  # its compilation can take a minute
        until_stopped = (batch.images for batch in pictures)
        mine.extend(evaluate(codec, until_stopped, run.device, batch_size=run.eval_batch, rates=rates))
    figures = _means(mine, run, bool(stop.name))
    if "ms_ssim" in figures:
        figures["rd"] = run.objective.rd(figures["l1"], figures["ms_ssim"], figures["bpp_estimated"])
    run.schedule.observe(figures["rd"] if "rd" in figures else -figures.get("psnr", math.inf))
    record.row("validation", step, {"epoch": epoch, **figures})
    record.say(f"epoch {epoch}: " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    for line in about_latent(codec):
        record.say(line)
    run.last_metrics = figures


def _means(figures: list[Figures], run: Run, stopped: bool) -> dict[str, float]:
    """Means over the pictures of all ranks; asserts that each picture was counted exactly once."""
    totals = torch.tensor([*sums_and_counts(figures), len(figures), stopped], dtype=torch.float64)
    *over_ranks, count, stops = sum_over_ranks(totals.to(run.device))
    if stops:
        raise Stopped
    assert run.data.validation is not None
    assert count == len(run.data.validation), f"evaluated {count} of {len(run.data.validation)} pictures"
    return means(over_ranks)


def save_reconstructions(run: Run, record: Record, codec: Codec, name: str) -> None:
    """Writes originals and reconstructions of the first pictures to `recon_dir/{origin,NAME}/NNNNN.png`, in background.

    A grid of the pairs goes to `recon_dir/NAME.png` and to the trackers, and after training to `save_dir`, for uploads:
    another run may share `recon_dir`.
    """
    output = run.options.output
    count = min(output.recon_count, len(run.data.pictured))
    if not run.accelerator.is_main_process:
        return
    root = Path(output.recon_dir)
    pairs: list[Pixels] = []

    def keep(x: Tensor, x_hat: Tensor) -> None:
        pairs.extend(np.concatenate([_as_images(x), _as_images(x_hat)], axis=2))

    shares = EvalBatches(run.data.pictured, run.eval_batch, 0, 1, limit=count)
    for _ in evaluate(codec, (batch.images for batch in shares), run.device, keep, run.eval_batch):
        pass
    grid = _grid(pairs)

    def write() -> None:
        with record.unless_full(f"the reconstructions {root / name}"):
            for number, (original, reconstruction) in enumerate(np.split(pair, 2, axis=1) for pair in pairs):
                write_png(root / "origin" / f"{number:05d}.png", original)
                write_png(root / name / f"{number:05d}.png", reconstruction)
            write_png(root / f"{name}.png", grid)
            if name != BEFORE:
                with whole_or_absent(record.folder / RECONSTRUCTIONS) as beside:
                    Image.fromarray(grid).save(beside, "png")

    record.writer.submit(write)
    record.trackers.pictures(run.progress.step, grid, pairs)


def _as_images(x: Tensor) -> Pixels:
    images: Pixels = to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
    return images


def write_png(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _grid(pairs: list[Pixels]) -> Pixels:
    """Pairs (original | reconstruction) in a grid that is about as wide as high; empty places are black."""
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    pairs = pairs + [np.zeros_like(pairs[0])] * (-len(pairs) % columns)
    lines = [np.concatenate(pairs[i : i + columns], axis=1) for i in range(0, len(pairs), columns)]
    return np.concatenate(lines, axis=0)
