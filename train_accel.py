"""Fine-tunes a learned image codec whose GDN layers were replaced by blocks that run on an NPU.

    accelerate launch train_accel.py --coco_dir coco224 --act relu
    python train_accel.py --coco_dir coco224 --act relu         # one device, no launcher

Exit status: 0 done, 2 bad input, 3 stopped by numerical faults, 75 stopped by a signal with a checkpoint saved,
130 interrupted twice.
"""

from __future__ import annotations

import contextlib
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from coco224.ranks import is_first_here
from codec.cli import run as run_command
from training.preempt import PREEMPTED, Preempted, Stopped, StopSignal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from training.micro_batches import MicroBatch
    from training.outcome import Outcome
    from training.record import Record
    from training.run import Run

TOO_MANY_FAULTS = 3
READ_LATE = ("cuda",)
"""Devices that compute while the host continues: there the outcome of a step is read during the next step."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. Heavy modules are imported only after the options were checked."""
    stop = StopSignal().install()
    try:
        stop.start()
        return run_training(argv, stop)
    except Preempted:
        if is_first_here():
            print(f"stopped by {stop.name} before the first step; run the same command again", file=sys.stderr)
        return PREEMPTED


def run_training(argv: Sequence[str] | None, stop: StopSignal) -> int:
    """A complete run, from the command line to the last output. Returns the exit status.

    Raises:
        Preempted: a signal came before the first optimizer step was done.
    """
    from training.options import parse

    options = parse(argv)
    stop.install()  # again, because a plugin may have replaced the signal handlers
    from training.folder import hold, take_over
    from training.record import Record
    from training.setup import launch, set_up
    from training.summary import announce, conclude

    accelerator, folder = launch(options), Path(options.output.save_dir)
    with hold(folder, accelerator):
        run = set_up(options, accelerator)
        take_over(folder, run.progress.run, run.in_place, accelerator)
        record = Record(accelerator, run.options, run.total, run.progress, run.data.batches.global_batch)
        with contextlib.closing(record):
            announce(run, record)
            status = train(run, record, stop)
            stop.begun()
            record.finish_files()  # and the summary, before trackers: a launcher kills 30 s after a signal
            conclude(run, record, status)
    accelerator.end_training()
    return status


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run_command(main)


def train(run: Run, record: Record, stop: StopSignal) -> int:
    """The loop: steps, with checkpoints, evaluations and reconstructions in between. Returns the exit status."""
    from training.saving import interruptible_compilation, save
    from training.validation import BEFORE, save_reconstructions

    output, progress = run.options.output, run.progress
    if progress.step == 0 and output.recon_every:
        save_reconstructions(run, record, run.shipped(), BEFORE)  # shows the loss from the new blocks before training
    # If a kill came between the last step of an epoch and its evaluation, the resumed run evaluates first.
    if not end_epoch(run, record, stop):
        return PREEMPTED
    unread: Outcome | None = None
    while progress.step < run.total:
        # The outcome of the step before is read while a GPU computes the gradients of this one.
        try:
            with interruptible_compilation(run, record, stop):
                last, unread = unread, optimizer_step(run, stop, partial(record_outcome, run, record, unread))
        except Stopped:
            return PREEMPTED
        stop.begun()
        progress.step += 1
        run.last_metrics = {}
        stopping = last is not None and last.stopping
        if stopping or not may_wait(run):
            record_outcome(run, record, unread)
            stopping, unread = stopping or unread.stopping, None

        # Every --checkpoint_every steps, and when the run must end here: save the state to resume from.
        exhausted = progress.faults_in_a_row >= run.options.numerics.overflow_patience
        ends_run = stopping or exhausted
        if ends_run or progress.step % output.checkpoint_every == 0:
            save(run, record, run.shipped(), ends_run=ends_run)
        if stopping:
            return PREEMPTED
        if exhausted:
            return TOO_MANY_FAULTS

        # At the end of an epoch: evaluation, reconstructions, curves, checkpoints.
        if not end_epoch(run, record, stop):
            return PREEMPTED
    return 0


def may_wait(run: Run) -> bool:
    """Whether the outcome of the last step may be read during the next step.

    Not before a checkpoint, an evaluation or a new phase of QAT, and not where one more fault ends the run.
    """
    from training.phases import begins_phase

    step, faults = run.progress.step, run.progress.faults_in_a_row
    saves = step % run.options.output.checkpoint_every == 0 or ends_epoch(run, 1)
    changes = begins_phase(run.options.qat, step)  # it may change weights, and a fault must be found with those it had
    exhausts = faults + 1 >= run.options.numerics.overflow_patience
    return run.device.type in READ_LATE and not (saves or changes or exhausts)


def record_outcome(run: Run, record: Record, outcome: Outcome | None) -> None:
    """Reads the outcome of a step, if there is one, and records it."""
    if outcome is None:
        return
    run.progress.faults_in_a_row = run.progress.faults_in_a_row + 1 if outcome.fault else 0
    if outcome.fault:
        report_fault(run, record, outcome)
    record.step(outcome.step, outcome.figures, outcome.lr)  # a row every --log_every steps


def end_epoch(run: Run, record: Record, stop: StopSignal) -> bool:
    """If an epoch ends at this step, does its work once. Returns False if a signal came and the state is saved."""
    from training.saving import save
    from training.validation import save_reconstructions, validate

    output, progress = run.options.output, run.progress
    if progress.evaluated == progress.step or not ends_epoch(run, 1):
        return True
    epoch, shipped = math.ceil(progress.step / run.steps_per_epoch), run.shipped()
    try:
        if run.data.validation and ends_epoch(run, output.eval_every):
            validate(run, record, stop, shipped, epoch)
    except Stopped:  # the resumed run repeats the evaluation
        save(run, record, shipped, ends_run=True)
        return False
    if ends_epoch(run, output.recon_every):
        save_reconstructions(run, record, shipped, f"e{epoch:03d}")
    progress.evaluated = progress.step
    ends_run = progress.step >= run.total
    record.draw(ends_run)
    save(run, record, shipped, ends_run=ends_run)
    return True


def ends_epoch(run: Run, every: int) -> bool:
    """Whether this step ends the run, or an epoch whose number is a multiple of `every` (0: never)."""
    step = run.progress.step
    if not every or not step:
        return False
    return step >= run.total or step % (every * run.steps_per_epoch) == 0


def forward(run: Run, model: nn.Module, batch: MicroBatch) -> tuple[dict[str, Any], Tensor, dict[str, Tensor]]:
    """Runs codec and objective on a micro-batch.

    Returns:
        The outputs, the loss (distortion and rate), and figures.
    """
    x = run.to_pictures(batch.images)
    with run.autocast():
        out = model(x, batch.keys, run.objective.detaches_rate, batch.rates)
    loss, figures = run.loss(out, x, batch.rates)
    return out, loss, figures


def optimizer_step(run: Run, stop: StopSignal, meanwhile: Callable[[], None] = lambda: None) -> Outcome:
    """One step over the global batch: forward, backward, clip, agree, apply.

    Args:
        meanwhile: called before the weights change, while a GPU computes the gradients.
    """
    import torch

    from training.distributed import reduce_over_ranks
    from training.optim import apply_unless
    from training.outcome import Outcome, Reading
    from training.phases import begins_fake_quantization
    from training.qat import end_step, enter_phase

    optimizer, watch, max_norm, step = run.optimizer, run.watch, run.options.numerics.max_grad_norm, run.progress.step
    lr = run.schedule.apply(optimizer, step)
    enter_phase(run.codec, run.options.qat, step)
    if begins_fake_quantization(run.options.qat, step):
        run.fix_grids()
    optimizer.zero_grad(set_to_none=True)
    watch.reset()
    batches: list[MicroBatch] = []
    sums = torch.zeros((), device=run.device)
    for micro in range(run.grad_accum):
        batch = next(run.micro_batches)
        batches.append(batch)
        last = micro == run.grad_accum - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            out, loss, figures = forward(run, run.model, batch)
            # The auxiliary loss trains only the quantiles; with one backward, every gradient is reduced once.
            run.scaler.scale((loss + out["aux_loss"]) / run.grad_accum).backward()
        watch.see(out["x_hat"], loss)
        sums = sums + torch.stack(list(figures.values()))
    meanwhile()

    run.scaler.unscale_(optimizer)
    for parameters in run.clipped:
        watch.see_gradients(parameters, forgive_overflow=run.scaler.is_enabled())
        if max_norm:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    # A fault or a stop of one rank is shared with all, and figures become global means.
    stopping = torch.full((), float(bool(stop.name)), device=run.device)  # a fill, which does not synchronize
    share = run.grad_accum * run.accelerator.num_processes
    shared = torch.cat([torch.stack([watch.faulty(), stopping]), sums / share])
    reduce_over_ranks(shared, "sum")
    fault = shared[0].clamp(max=1)
    apply_unless(fault, optimizer, run.scaler)
    run.scaler.update()
    end_step(run.codec, fault)
    return Outcome(step + 1, lr, batches, list(figures), Reading(shared))


def report_fault(run: Run, record: Record, outcome: Outcome) -> None:
    """Reports the module where the first bad value of a skipped step appeared, and the pictures of its batch.

    Every rank runs its batches again: reduced gradients do not tell whose batch was at fault.
    """
    from training.faults import guilty_module

    suspect = run.replica()  # on every rank: a sharded codec is gathered here
    for batch in outcome.batches:

        def loss_of(codec: nn.Module, batch: MicroBatch = batch) -> Tensor:
            return run.scaler.scale(forward(run, codec, batch)[1])

        module = guilty_module(suspect, loss_of, run.options.numerics.overflow_tol)
        if module:
            record.fault(outcome.step, module, run.data.rows.names(batch.rows.tolist()))
            return
    record.row("fault", outcome.step, {"skipped": 1})


if __name__ == "__main__":
    cli()
