"""Sends figures to Accelerate's trackers. `metrics.jsonl` has all figures anyway, and no tracker stops training."""

import atexit
import contextlib
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from coco224.errors import first_line
from coco224.reading.rows import Pixels
from training.options import Options
from training.state import Progress

WANDB_SECONDS = "30"  # longest delay of the start by an unreachable W&B; WANDB_INIT_TIMEOUT overrides it
LAST_SECONDS = 60  # longest delay of the end by trackers; `wandb sync` uploads the rest


class Trackers:
    """The trackers of a run; only the main process has any.

    A tracker that fails is reported and not used any more. If W&B cannot be reached, it records offline.
    """

    def __init__(self, accelerator: Accelerator, options: Options, progress: Progress) -> None:
        self.accelerator = accelerator
        self.options = options
        self.points: list[list[float]] = []
        self.processes: set[psutil.Process] = set()
        if accelerator.is_main_process and accelerator.log_with:
            before = set(psutil.Process().children(recursive=True))
            try:
                self._start(progress)
            except Exception as error:  # any tracker's own errors
                accelerator.trackers = []
                warnings.warn(f"tracking stopped, training goes on: {error}", stacklevel=2)
            self.processes = set(psutil.Process().children(recursive=True)) - before

    def log(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Sends numbers as `kind/name`, for an optimizer step."""
        numbers = {f"{kind}/{name}": value for name, value in figures.items() if isinstance(value, int | float)}
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                numbers_of_step = numbers | {"step": step} | (self._point(figures) if kind == "validation" else {})
                self._tell(tracker, functools.partial(tracker.log, numbers_of_step))
            else:
                self._tell(tracker, functools.partial(tracker.log, numbers, step=step))

    def pictures(self, step: int, grid: Pixels, pairs: list[Pixels]) -> None:
        """Sends a grid, uint8 [H, W, 3], and its pairs (original | reconstruction) to trackers that accept pictures."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                self._tell(tracker, functools.partial(_log_to_wandb, tracker, step, grid, pairs))
            elif hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                images = {"reconstructions": grid[None], "pairs": np.stack(pairs)}
                self._tell(tracker, functools.partial(tracker.log_images, images, step=step, **layout))

    def checkpoint(self, file: Path, step: int, ends_run: bool) -> None:
        """Sends a checkpoint to W&B as an artifact, if --wandb_log_model says so."""
        wanted = self.options.reporting.wandb_log_model
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb" and (wanted == "checkpoint" or (wanted == "end" and ends_run)):
                self._tell(tracker, functools.partial(_log_artifact, tracker, file, step))

    def finish(self) -> None:
        """Ends the trackers; a tracker that does not end within a minute is killed."""

        def work() -> None:
            for tracker in list(self.accelerator.trackers):
                self._tell(tracker, tracker.finish)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(LAST_SECONDS)
        if thread.is_alive():
            names = ", ".join(tracker.name for tracker in self.accelerator.trackers)
            warnings.warn(f"{names} did not end within {LAST_SECONDS} s and is ended now", stacklevel=2)
            for process in self.processes:  # otherwise the interpreter waits for them when it exits
                with contextlib.suppress(psutil.Error):
                    process.kill()
            atexit.register(sys.stderr.close)  # before W&B's own hook, which would print that they are gone
        self.accelerator.trackers = []  # `end_training` would end them a second time

    def _start(self, progress: Progress) -> None:
        """Starts the trackers with the run's options as configuration; a resumed run continues its W&B run."""
        reporting = self.options.reporting
        config = {name: "" if value is None else value for name, value in self.options.flat().items()}
        init: dict[str, Any] = {"name": run_name(self.options), "tags": tags(self.options), "resume": "allow"}
        init |= {"id": run_id} if (run_id := progress.tracker.get("wandb")) else {}
        start = functools.partial(self.accelerator.init_trackers, reporting.wandb_project, config=config)
        if not reporting.wandb:
            start()
            return
        import wandb

        seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", WANDB_SECONDS))
        init["settings"] = wandb.Settings(init_timeout=seconds, finish_timeout=LAST_SECONDS)
        try:
            start(init_kwargs={"wandb": init})
        except wandb.Error as error:  # no account, no network
            self.accelerator.trackers = []
            warnings.warn(
                f"W&B cannot be reached ({first_line(error)}): recording offline, `wandb sync` uploads it", stacklevel=3
            )
            start(init_kwargs={"wandb": init | {"mode": "offline"}})
        run = self.accelerator.get_tracker("wandb").run
        # The x axis is the optimizer step, not W&B's own count: a resumed run logs some steps a second time.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        run.define_metric("rd/*", step_metric="rd/bpp")  # one point per evaluation; the runs of a sweep give a curve
        progress.tracker["wandb"] = run.id

    def _point(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The evaluation as a rate-distortion point, and a plot of this process's points so far."""
        import wandb

        if not figures.keys() >= {"bpp_estimated", "psnr"}:
            return {}
        bpp, psnr = figures["bpp_estimated"], figures["psnr"]
        self.points.append([bpp, psnr])
        table = wandb.Table(columns=["bpp", "PSNR"], data=self.points)
        plot = wandb.plot.scatter(table, "bpp", "PSNR", title="Rate and distortion of each evaluation")
        return {"rd/bpp": bpp, "rd/psnr": psnr, "rd_plot": plot}

    def _tell(self, tracker: GeneralTracker, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # any tracker's own errors, network included
            self.accelerator.trackers = [each for each in self.accelerator.trackers if each is not tracker]
            warnings.warn(f"{tracker.name} stopped, training goes on: {error}", stacklevel=2)


def _log_to_wandb(tracker: Any, step: int, grid: Pixels, pairs: list[Pixels]) -> None:
    import wandb

    captioned = [
        wandb.Image(pair, caption=f"{number:05d}: original | reconstruction") for number, pair in enumerate(pairs)
    ]
    tracker.log({"step": step, "reconstructions": wandb.Image(grid), "pairs": captioned})


def _log_artifact(tracker: Any, file: Path, step: int) -> None:
    import wandb

    artifact = wandb.Artifact(f"codec-{tracker.run.id}", type="model", metadata={"step": step})
    artifact.add_file(str(file))
    tracker.run.log_artifact(artifact, aliases=["latest", f"step-{step}"])


def run_name(options: Options) -> str:
    """The name in the trackers: --run_name, or a short form of the recipe."""
    replacement = options.replacement
    words = [replacement.act, replacement.replace_parts, options.loss.loss_type, _size(options), *_int8(options)]
    return options.reporting.run_name or "-".join(words)


def tags(options: Options) -> list[str]:
    """Tags to find a run by: block, parts, scope, loss, quality, and QAT if it trains for int8."""
    replacement = options.replacement
    words = [replacement.act, replacement.replace_parts, replacement.train_scope, options.loss.loss_type]
    return [*words, _size(options), *_int8(options)]


def _size(options: Options) -> str:
    return f"q{options.model.quality}" if options.model.N is None else f"N{options.model.N}"


def _int8(options: Options) -> list[str]:
    return ["qat"] * options.qat.qat
