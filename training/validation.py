"""Evaluation inside a run: every rank its share, on a copy with fresh tables; best checkpoints and reconstructions."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coco224.batches import EvalBatches
from codec.checkpoint import save_codec
from codec.entropy import with_tables
from codec.evaluation import Figures, evaluate
from codec.metrics import to_uint8
from training.distributed import sum_over_ranks
from training.preempt import StopSignal
from training.record import Record
from training.saving import describe
from training.setup import Run

# The metric that each best_* file keeps, and whether more of it is better.
BEST = {"psnr": ("best_psnr", True), "ms_ssim": ("best_msssim", True), "rd": ("best_rd", False)}


class Stopped(Exception):
    """A signal came while evaluating; the evaluation is done again after the resume."""


def validate(run: Run, record: Record, stop: StopSignal, epoch: int) -> None:
    """Evaluates the whole validation split, records the figures and keeps the best checkpoints.

    Raises:
        Stopped: a signal reached a rank; nothing was recorded.
    """
    assert run.validation is not None
    codec, step = with_tables(run.replica()), run.progress.step
    accelerator = run.accelerator
    shares = EvalBatches(
        run.validation, run.options.data.batch_size, accelerator.process_index, accelerator.num_processes
    )

    def until_stopped() -> Iterator[Tensor]:
        for i in range(len(shares)):
            if stop.name:
                return
            yield shares[i].images

    figures = list(evaluate(codec, until_stopped(), run.device))
    means = _means(figures, run, bool(stop.name))
    loss = run.options.loss
    if "ms_ssim" in means:
        distortion = loss.alpha_l1 * means["l1"] + (1 - loss.alpha_l1) * (1 - means["ms_ssim"])
        means["rd"] = distortion + loss.lambda_bpp * means["bpp_estimated"]
    run.schedule.observe(means["rd"] if "rd" in means else -means.get("psnr", math.inf))
    record.row("validation", step, {"epoch": epoch, **means})
    record.say(f"epoch {epoch}: " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()))
    for metric, (name, more_is_better) in BEST.items():
        value, best = means.get(metric), run.progress.best.get(metric)
        if value is None or not math.isfinite(value):  # a run that diverged keeps the best it had
            continue
        if best is not None and (value <= best if more_is_better else value >= best):
            continue
        if accelerator.is_main_process:
            with record.unless_full(f"{name}.safetensors"):
                save_codec(Path(run.options.output.save_dir) / f"{name}.safetensors", codec, describe(run, means))
                run.progress.best[metric] = value
    run.last_metrics = means


def _means(figures: list[Figures], run: Run, stopped: bool) -> dict[str, float]:
    """Means over all pictures of all ranks; asserts that none was lost or counted twice.

    As in `python -m codec.evaluate`, a picture that came back identical has no PSNR, and a small one no MS-SSIM.
    """
    rows: list[tuple[float, ...]] = []
    for f in figures:
        psnr = (0.0, 0.0) if f.psnr == math.inf else (f.psnr, 1.0)
        ms_ssim = (0.0, 0.0) if f.ms_ssim is None else (f.ms_ssim, 1.0)
        rows.append((*psnr, *ms_ssim, f.l1, f.bpp_estimated, 1.0))
    sums = torch.tensor([*np.sum(rows or [(0.0,) * 7], axis=0), float(stopped)], dtype=torch.float64)
    psnrs, with_psnr, ms_ssims, with_ms_ssim, l1, bpp, count, stops = sum_over_ranks(sums.to(run.device))
    if stops:
        raise Stopped
    assert run.validation is not None
    assert count == len(run.validation), f"evaluated {count} of {len(run.validation)} pictures"
    means = {"psnr": psnrs / with_psnr} if with_psnr else {}
    means |= {"l1": l1 / count, "bpp_estimated": bpp / count}
    return {**means, "ms_ssim": ms_ssims / with_ms_ssim} if with_ms_ssim else means


def save_reconstructions(run: Run, record: Record, name: str) -> None:
    """Writes the first pictures' originals and reconstructions, `recon_dir/{origin,NAME}/NNNNN.png`.

    A grid of the pairs goes to `recon_dir/NAME.png` and to the trackers.
    """
    output = run.options.output
    count = min(output.recon_count, len(run.pictured))
    codec = with_tables(run.replica())
    if not run.accelerator.is_main_process:
        return
    root = Path(output.recon_dir)
    rows: list[np.ndarray] = []

    def keep(x: Tensor, x_hat: Tensor) -> None:
        for original, reconstruction in zip(_as_images(x), _as_images(x_hat), strict=True):
            _write_png(root / "origin" / f"{len(rows):05d}.png", original)
            _write_png(root / name / f"{len(rows):05d}.png", reconstruction)
            rows.append(np.concatenate([original, reconstruction], axis=1))

    shares = EvalBatches(run.pictured, run.options.data.batch_size, 0, 1, limit=count)
    batches = (shares[i].images for i in range(len(shares)))
    with record.unless_full(f"the reconstructions {root / name}"):
        for _ in evaluate(codec, batches, run.device, keep):
            pass
        grid = _grid(rows)
        _write_png(root / f"{name}.png", grid)
        record.pictures("reconstructions", run.progress.step, grid)


def _as_images(x: Tensor) -> np.ndarray:
    images: np.ndarray = to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
    return images


def _write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _grid(pairs: list[np.ndarray]) -> np.ndarray:
    """Pairs (original | reconstruction) in a grid about as wide as high; missing ones black."""
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    pairs = pairs + [np.zeros_like(pairs[0])] * (-len(pairs) % columns)
    lines = [np.concatenate(pairs[i : i + columns], axis=1) for i in range(0, len(pairs), columns)]
    return np.concatenate(lines, axis=0)
