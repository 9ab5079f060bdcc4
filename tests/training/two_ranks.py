"""What each of two ranks does for test_distributed.py, which launches it: FOLDER, and runs in FOLDER/runs.json.

FOLDER/NAME/rank-R.safetensors     the weights and buffers that rank R ended a run with
FOLDER/NAME/shipped-R.safetensors  those of the copy that it evaluated last
FOLDER/NAME/HOW-R.safetensors      where NAME has "gradients": its own after one step, HOW: together (as trained) or
                                   alone (no_sync)
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from train_accel import optimizer_step, train
from training.options import parse
from training.preempt import StopSignal
from training.record import Record
from training.setup import set_up
from training.state import model_tensors


def train_run(folder: Path, words: list[str]) -> None:
    run = set_up(parse(words))
    record = Record(run.accelerator, run.options, run.total, run.progress, run.data.batches.global_batch)
    assert train(run, record, StopSignal()) == 0
    assert not run.model.broadcast_buffers  # DDP's, before every forward
    for name, codec in (("rank", run.codec), ("shipped", run.eval_codec)):
        save_file(model_tensors(codec), folder / f"{name}-{run.accelerator.process_index}.safetensors")


def take_gradients(folder: Path, words: list[str]) -> None:
    """Of one step from the same weights, but for the quantiles: moved on rank 1, so that its auxiliary loss differs."""
    for how in ("together", "alone"):
        run = set_up(parse(words))
        rank = run.accelerator.process_index
        with torch.no_grad():
            run.codec.entropy_bottleneck.quantiles += 100.0 * rank
        with run.model.no_sync() if how == "alone" else contextlib.nullcontext():
            optimizer_step(run, StopSignal())
        gradients = {name: p.grad.contiguous() for name, p in run.codec.named_parameters() if p.grad is not None}
        save_file(gradients, folder / f"{how}-{rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, words in json.loads((folder / "runs.json").read_text()).items():
        (folder / name).mkdir(exist_ok=True)
        (take_gradients if "gradients" in name else train_run)(folder / name, words)
