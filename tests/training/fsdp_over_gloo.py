"""What each of two ranks does for test_fsdp.py, which launches it: FOLDER, and the training commands in its runs.json.

Accelerate turns FSDP on only for GPU processes. Where a command is to run sharded, torch's own `fully_shard` takes the
place of `Accelerator.prepare`, which is all that Accelerate's FSDP2 does to this trainer; the rest is the trainer.
"""

import contextlib
import json
import sys
import types
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from train_accel import main


def prepare(
    self: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, types.SimpleNamespace]:
    """Shards the model over the ranks and hands the optimizer the shards."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    fully_shard(model, mesh=init_device_mesh("cpu", (self.num_processes,)))
    shards = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [shards[names[parameter]] for parameter in group["params"]]
    held = sum(shard.to_local().numel() for shard in shards.values())
    print(f"rank {self.process_index} holds {held} of {sum(shard.numel() for shard in shards.values())}")
    return model, types.SimpleNamespace(optimizer=optimizer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    patch.object(Accelerator, "end_training", lambda self: None).start()  # the next command needs the process group
    for how, words in json.loads((Path(sys.argv[1]) / "runs.json").read_text()):
        sharded = patch.object(Accelerator, "prepare", prepare) if how == "fsdp" else contextlib.nullcontext()
        with sharded:
            assert main(words) == 0
