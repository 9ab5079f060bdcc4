"""The trainer's own step as a side of a benchmark: the loop of `train_accel.py` without its evaluations and files."""

from functools import partial
from pathlib import Path

import torch

from train_accel import optimizer_step, record_outcome
from training.options import parse
from training.outcome import Outcome
from training.preempt import StopSignal
from training.record import Record
from training.run import Run
from training.setup import set_up

COMMON = ("--pretrained", "false", "--train_scope", "all", "--replace_parts", "all", "--resume", "none")
FAST = (*COMMON, "--compile", "true")


class Trainer:
    """A run of the trainer, stepped from outside.

    Args:
        folder: where the run keeps its record; new.
        options: of `train_accel.py`, beyond those that every benchmark shares.
    """

    def __init__(self, coco224: Path, folder: Path, *options: object) -> None:
        words = ["--coco_dir", coco224, "--save_dir", folder, "--recon_dir", folder / "recon", *options]
        self.run: Run = set_up(parse([str(word) for word in words]))
        run = self.run
        self.record = Record(run.accelerator, run.options, run.total, run.progress, run.data.batches.global_batch)
        self.stop = StopSignal()
        self.unread: Outcome | None = None
        self.device = run.device

    def step(self) -> None:
        """Reads a batch, steps, records: what the loop does between two evaluations."""
        self.unread = optimizer_step(self.run, self.stop, partial(record_outcome, self.run, self.record, self.unread))
        self.run.progress.step += 1
        assert not self.run.progress.faults_in_a_row

    def finish(self) -> None:
        """Records the last step, whose outcome would be read during the next one."""
        record_outcome(self.run, self.record, self.unread)
        self.unread = None

    def hold(self) -> None:
        """Keeps a batch in memory for `bare_step`."""
        run = self.run
        batch = next(run.micro_batches)
        self.x = run.to_pictures(batch.images)
        self.keys = batch.keys

    def bare_step(self) -> None:
        """Forward, backward, clipping and Adam on the batch in memory, with nothing around them."""
        run = self.run
        run.optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            out = run.model(self.x, self.keys, run.objective.detaches_rate)
        loss, _ = run.loss(out, self.x)
        (loss + out["aux_loss"]).backward()
        for parameters in run.clipped:
            torch.nn.utils.clip_grad_norm_(parameters, run.options.numerics.max_grad_norm)
        run.optimizer.step()
