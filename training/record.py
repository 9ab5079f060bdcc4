"""The record of a run: metrics.jsonl, curves.png, config.yaml, trackers, and uploads to the Hub."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from accelerate import Accelerator
from tqdm import tqdm

from coco224.errors import printable
from coco224.files import FULL, in_words, read_regular, whole_or_absent
from codec.evaluation.curves import Point, curve, plot
from codec.hub.repository import CONFIG
from training.folder import write_config
from training.options import Options
from training.state import Progress
from training.trackers import Trackers
from training.uploads import Uploads
from training.writer import Writer

LAST = "last.safetensors"
ROWS = "metrics.jsonl"
CURVES = "curves.png"
RATE_DISTORTION = "rd.png"
REDRAWN_AFTER = 30
"""Seconds between two drawings, which take half a second of a core; an epoch of few pictures is shorter."""
LARGEST = 1e300
"""No figure is as large, and none of this size can be drawn."""
PANELS = {"loss": "loss", "bpp": "bits per pixel", "psnr": "PSNR, dB", "lr": "learning rate"}
DRAWN = (*PANELS, "bpp_estimated", "ms_ssim")


class Record:
    """Sends figures to a file, a progress bar and trackers; only the main process writes.

    Attributes:
        writer: writes in the background.
    """

    def __init__(
        self, accelerator: Accelerator, options: Options, total: int, progress: Progress, global_batch: int
    ) -> None:
        self.accelerator = accelerator
        self.folder = Path(options.output.save_dir)
        self.writes = accelerator.is_main_process
        self.log_every = options.output.log_every
        self.global_batch = global_batch
        self.window: list[dict[str, float]] = []
        self.bar = tqdm(total=total, initial=progress.step, unit="step", disable=not self.writes, dynamic_ncols=True)
        self.since = self.drawn = time.perf_counter()
        self.writer = Writer()
        self.uploads: Uploads | None = None
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            keep_rows_up_to(self.folder / ROWS, progress)
            config = yaml.safe_dump(options.flat(), sort_keys=False)
            written = write_config(self.folder, f"# {options.command()}\n{config}")
            if written is None or written.name != CONFIG:
                place = f"in {written.name}" if written else "in the run's state"
                self.say(f"options     {self.folder / CONFIG} is another program's and stays: they are {place}")
            if options.reporting.push_to_hub:
                self.uploads = Uploads(self.folder / LAST, options.reporting, self.say, options.replacement.plugin)
        self.trackers = Trackers(accelerator, options, progress)

    def step(self, step: int, figures: dict[str, float], lr: float) -> None:
        """Records the figures of step number `step`: always in the bar, every --log_every steps as a row of means."""
        self.window.append(figures)
        per_second = self.global_batch * len(self.window) / (time.perf_counter() - self.since)
        shown = {"loss": ".4f", "bpp": ".3f", "psnr": ".2f"}
        postfix = {name: format(figures[name], style) for name, style in shown.items()}
        self.bar.set_postfix(postfix | {"lr": f"{lr:.1e}", "img/s": f"{per_second:.1f}"}, refresh=False)
        self.bar.update()
        if step % self.log_every == 0 or step == self.bar.total:
            means = {name: fmean(row[name] for row in self.window) for name in figures}
            self.row("train", step, {**means, "lr": lr, "images_per_second": per_second})
            self.window = []
            self.since = time.perf_counter()

    def fault(self, step: int, module: str, files: list[str]) -> None:
        """Reports a skipped step, from the rank that had the fault, which may not be the main process."""
        rank = self.accelerator.process_index
        what = f"step {step} skipped: rank {rank} had NaN, Inf or a huge value in {module}"
        self.bar.write(printable(f"{what}; pictures: {', '.join(files)}"), file=sys.stderr)
        self.trackers.log("fault", step, {"skipped": 1})
        row = {"kind": "fault", "step": step, "rank": rank, "module": module, "files": files}
        try:  # the folder may not exist on this rank
            append_json_line(self.folder / ROWS, row)
        except OSError as error:
            self.bar.write(f"the fault could not be written to {ROWS} ({in_words(error)})", file=sys.stderr)

    @contextlib.contextmanager
    def unless_full(self, what: str) -> Iterator[None]:
        """Prints a message if a write fails on a full disk, and training continues. Other errors are raised."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.say(f"disk full: {what} was not written ({error.filename or self.folder})")

    def row(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Writes one row ("train", "validation", "fault") and sends its numbers to the trackers as `kind/name`."""
        if not self.writes:
            return
        with self.unless_full(ROWS):
            append_json_line(self.folder / ROWS, {"kind": kind, "step": step, **figures})
        self.trackers.log(kind, step, figures)

    def checkpoint(self, step: int, ends_run: bool) -> None:
        """Notifies trackers and uploader of a new `last.safetensors`; `conclude` uploads the final checkpoint."""
        self.trackers.checkpoint(self.folder / LAST, step, ends_run)
        if self.uploads and not ends_run:
            self.uploads.request()

    def draw(self, ends_run: bool) -> None:
        """Makes the writer redraw `curves.png` and `rd.png`: at the end of the run, and before it now and then."""
        if self.writes and (ends_run or time.perf_counter() - self.drawn >= REDRAWN_AFTER):
            self.drawn = time.perf_counter()
            self.writer.submit(self._draw)

    def _draw(self) -> None:
        with self.unless_full(CURVES):
            draw_curves(self.folder)
            draw_rate_distortion(self.folder)

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on the main process."""
        if self.writes:
            self.bar.write(printable(line), file=sys.stderr)

    def finish_files(self) -> None:
        """Ends the writer and the progress bar."""
        self.writer.close()
        self.bar.close()

    def close(self) -> None:
        """Ends the writer, the progress bar, the uploads and the trackers."""
        self.finish_files()
        if self.uploads:
            self.uploads.abandon()
        self.trackers.finish()


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a JSON-lines file; figures that are not finite are left out, because JSON cannot express them."""
    kept = {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
    with path.open("ab+") as file:
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * bool(torn) + json.dumps(kept).encode() + b"\n")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The intact rows of a JSON-lines file; incomplete or damaged lines, which a kill can leave, are skipped."""
    if not path.exists():
        return
    for line in read_regular(path).decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if _is_intact(row):
                yield row


def _is_intact(row: Any) -> bool:
    """Whether a row has a kind and a step, and numbers where it has figures that are drawn."""
    if not (isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int):
        return False
    drawn = [row[name] for name in ("step", *DRAWN) if name in row]
    return all(type(value) in (int, float) and abs(value) < LARGEST for value in drawn)


def keep_rows_up_to(path: Path, progress: Progress) -> None:
    """Removes the rows of steps and evaluations that the resumed run will repeat."""
    done = {"validation": progress.evaluated}
    rows = [row for row in json_lines(path) if row["step"] <= done.get(row["kind"], progress.step)]
    with whole_or_absent(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw_curves(folder: Path) -> None:
    """Draws `curves.png` from `metrics.jsonl`: training lines and validation points."""
    from matplotlib.figure import Figure

    rows = list(json_lines(folder / ROWS))
    figure = Figure(figsize=(11, 7))
    figure.subplots_adjust(0.06, 0.07, 0.98, 0.95, 0.15, 0.28)  # a computed layout takes twice as long to draw
    for axis, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for kind, style in (("train", {"lw": 1}), ("validation", {"marker": "o"})):
            points = [(row["step"], row[name]) for row in rows if row["kind"] == kind and name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=kind, **style)
        axis.set_title(title, y=1)  # a computed place takes a quarter of the time
        axis.set(xlabel="optimizer step")
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    with whole_or_absent(folder / CURVES) as beside:
        figure.savefig(beside, format="png", dpi=110)


def draw_rate_distortion(folder: Path) -> None:
    """Draws `rd.png` from the validations in `metrics.jsonl`, one point for each; does nothing if there are none.

    `codec.evaluate --plot` draws the better plot, from real files and with references.
    """
    rows = [row for row in json_lines(folder / ROWS) if row["kind"] == "validation" and "psnr" in row]
    points = [Point(row["bpp_estimated"], row["psnr"], row.get("ms_ssim")) for row in rows if "bpp_estimated" in row]
    if points:
        plot(folder / RATE_DISTORTION, "validation crops, estimated bits", [curve("one point per evaluation", points)])
