"""The output of a run at its start and at its end."""

import json
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from coco224.errors import counted
from coco224.files import whole_or_absent
from coco224.processes import usable_cores
from coco224.ranks import ranks_here
from codec.checkpoint import Description
from codec.description.architecture import KEEP_GDN, TRANSFORMS, Architecture
from codec.network.codec import gdn_layers
from codec.network.complexity import costs
from training.faults import ADVICE
from training.hardware import core_warning
from training.precision import is_emulated
from training.preempt import PREEMPTED
from training.qat import announcement
from training.record import LAST, Record
from training.run import Run
from training.uploads import HURRY, PATIENCE, Uploads

SUMMARY = "summary.json"


def announce(run: Run, record: Record) -> None:
    """Prints what is replaced, what trains, the precision, the batch, and the step where the run starts."""
    codec, options = run.codec, run.options
    everything = sum(p.numel() for p in codec.parameters())
    trained = sum(p.numel() for p in codec.parameters() if p.requires_grad)
    kept = len(list(gdn_layers(codec)))
    replaced = options.replacement
    if replaced.act == KEEP_GDN:
        what = f"GDN kept everywhere ({counted(kept, 'layer')})"
    else:
        parts = " and ".join(TRANSFORMS[replaced.replace_parts])
        what = f"{replaced.act} in {parts}; {counted(kept, 'GDN layer')} {'is' if kept == 1 else 'are'} left"
    amp = options.numerics.amp_dtype if options.numerics.amp else "FP32"
    regions = f", FP32 in {', '.join(run.fp32_modules)}" if run.fp32_modules else ""
    batches = run.data.batches
    record.say(f"codec       {codec.arch} N={codec.N} M={codec.M}, {what}")
    if record.writes:
        record.say(f"size        {size(codec.architecture)}")
    if codec.architecture.rates > 1:
        low, high = options.loss.ends
        record.say(
            f"rates       {codec.architecture.rates}, lambda {low:g} to {high:g}; figures are means over all rates"
        )
    record.say(f"trains      {trained:,} of {everything:,} parameters ({replaced.train_scope})")
    record.say(f"precision   {amp} on {run.device}{regions}")
    if options.numerics.amp and is_emulated(amp, run.device):
        record.say(f"warning     this CPU has no instructions for {amp}: --amp false is many times faster on it")
    local = ranks_here(run.accelerator.num_processes)
    if warning := core_warning(run.device, local, torch.get_num_threads(), usable_cores()):
        record.say(f"warning     {warning}")
    record.say(
        f"batch       {options.data.batch_size} x {run.grad_accum} accumulated x "
        f"{counted(run.accelerator.num_processes, 'process')} = {batches.global_batch}; "
        f"{counted(batches.steps_per_epoch, 'step')} per epoch, {run.total} in all"
    )
    if options.qat.qat:
        for line in announcement(codec, options.qat, options.numerics.amp):
            record.say(f"quantized   {line}")
    if run.distilled:
        fits = ", ".join(f"{name} {fit:.1f}" for name, fit in run.distilled.items())
        record.say(f"distilled   each block follows its GDN to (dB) {fits}")
    if run.data.validation is None:
        record.say("validation  none in this dataset: no evaluation and no best_* files")
    if run.progress.step >= run.total:
        done = f"all {run.progress.step} steps are" if run.progress.step > 1 else "the only step is"
        record.say(f"finished    {done} done; give more --epochs or --max_steps to continue")
    elif run.progress.step:
        record.say(f"resumes     at step {run.progress.step}")


@cache
def _costs_with_gdn(N: int, M: int, arch: str) -> dict[str, tuple[int, float]]:
    return costs(Architecture(N, M, arch=arch))


def size(architecture: Architecture) -> str:
    """Parameters and multiply-accumulates of the transforms, compared with GDN."""
    ours, gdn = costs(architecture), _costs_with_gdn(architecture.N, architecture.M, architecture.arch)
    words = {part: f"{part} {own[0]:,} parameters, {own[1] / 1000:.1f} kMAC/pixel" for part, own in ours.items()}
    for part in ("g_a", "g_s"):
        words[part] += f" (GDN: {gdn[part][0]:,}, {gdn[part][1] / 1000:.1f})"
    return "; ".join(words.values())


def conclude(run: Run, record: Record, status: int) -> None:
    """Prints how the run ended, where its files are and what to do next; writes the same to `summary.json`."""
    output = run.options.output
    if run.accelerator.is_main_process:
        with record.unless_full(SUMMARY), whole_or_absent(Path(output.save_dir) / SUMMARY) as beside:
            beside.write_text(json.dumps(summary(run, status), indent=1) + "\n")
    if status == PREEMPTED:
        record.say(f"stopped by a signal at step {run.progress.step}; the same command continues from there")
    elif status:
        record.say(
            f"error: {counted(run.progress.faults_in_a_row, 'faulty step')} in a row (--overflow_patience); the last "
            f"good state is saved; {ADVICE}"
        )
    elif faults := run.progress.faults_in_a_row:
        steps = "step was" if faults == 1 else f"{faults} steps were"
        record.say(f"warning: the last {steps} skipped, and the checkpoint has the weights from before; {ADVICE}")
    if record.uploads and (Path(output.save_dir) / LAST).exists():
        finish_uploads(record, record.uploads, PATIENCE if status == 0 else HURRY)
    if status == 0:
        best = "best_rd" if "rd" in run.progress.best else "last"
        checkpoint = f"{output.save_dir}/{best}.safetensors"
        record.say(f"checkpoints {output.save_dir}   reconstructions {output.recon_dir}")
        for place, words in enumerate(next_commands(run, checkpoint)):
            record.say(f"{'' if place else 'next':12}{shlex.join(words)}")


def next_commands(run: Run, checkpoint: str) -> list[list[str]]:
    """The commands to run next: evaluation with a report, export and, if the run does not upload, the push."""
    options, folder = run.options, run.options.output.save_dir
    data = ["--coco_dir", options.data.coco_dir]
    data += [] if options.data.use_prepared else ["--use_prepared", "false"]
    pictures = data if run.data.validation else ["--images", "/path/to/pictures"]
    plugin = ["--plugin", options.replacement.plugin] if options.replacement.plugin else []
    fake = [] if options.qat.qat_eval_fakequant else ["--qat_eval_fakequant", "false"]
    pages = ["--plot", f"{folder}/rd.png", "--report", f"{folder}/report.html"]
    commands = [["codec.evaluate", *pictures, "--checkpoint", checkpoint, *plugin, *fake, *pages]]
    for part, file in (("encoder", "enc"), ("decoder", "dec")):
        int8 = ["--precision", "int8"] if options.qat.qat and options.qat.qat_scope in (part, "all") else []
        commands.append(["export", "--ckpt", checkpoint, "--part", part, "--out", f"onnx/{file}.onnx", *int8, *plugin])
    if not options.reporting.push_to_hub:
        commands.append(["codec.push", "--checkpoint", checkpoint, "--hub_model_id", "USER/NAME", *plugin])
    return [["python", "-m", *words] for words in commands]


def finish_uploads(record: Record, uploads: Uploads, seconds: float) -> None:
    """Waits a limited time for the last upload, and prints what to do if it did not succeed."""
    if uploads.finish(seconds):
        record.say(f"hub         {uploads.repository} has {LAST} and the record")
    else:
        record.say(f"hub         {uploads.repository} lacks the last upload; complete it with: {uploads.command}")


def summary(run: Run, status: int) -> dict[str, Any]:
    """How the run ended, its best figures, and the version of the code."""
    return {
        "status": status,
        "step": run.progress.step,
        "total": run.total,
        "best": run.progress.best,
        "global_batch": run.progress.global_batch,
        "processes": run.accelerator.num_processes,
        "device": str(run.device.type),
        "versions": Description().versions,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of this program's checkout, with "+" if files were changed; None outside a checkout.

    An installed package may lie in the folder of another project's repository, which does not hold this file.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--abbrev=40", "--dirty=+")
    except (OSError, subprocess.CalledProcessError):
        return None
