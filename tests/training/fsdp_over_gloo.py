"""What each rank does for test_fsdp.py, which launches it: FOLDER, and the training commands in its runs.json.

The launcher reads accelerate_configs/fsdp.yaml, and Accelerate shards the codec as on GPUs. Only its choice of a device
is changed: Accelerate has FSDP for GPUs alone, and would choose NCCL.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.fsdp
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh

from train_accel import main

fully_shard = torch.distributed.fsdp.fully_shard


def shard_on_cpu(module: torch.nn.Module, **settings: Any) -> torch.nn.Module:
    """Shards over the CPU's ranks where Accelerate left the mesh to torch, and says how much each rank holds."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    sharded = fully_shard(module, **(settings | {"mesh": mesh}))
    shards = [parameter.to_local().numel() for parameter in module.parameters()]
    whole = sum(parameter.numel() for parameter in module.parameters())
    print(f"rank {mesh.get_local_rank()} of {mesh.size()} holds {sum(shards)} of {whole}; {shards.count(0)} are empty")
    return sharded


def train(how: str, words: list[str]) -> None:
    """One command, under FSDP or DDP; the process group stays for the next one."""
    os.environ["ACCELERATE_USE_FSDP"] = str(how == "fsdp")
    os.environ["ACCELERATE_USE_CPU"] = str(how == "ddp")
    kind = DistributedType.MULTI_GPU if how == "fsdp" else DistributedType.MULTI_CPU
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch.object(PartialState, "_prepare_backend", lambda *_: ("gloo", kind)):
        assert main(words) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    patch.object(torch.distributed.fsdp, "fully_shard", shard_on_cpu).start()
    patch.object(Accelerator, "end_training", lambda self: None).start()
    for how, words in json.loads((Path(sys.argv[1]) / "runs.json").read_text()):
        train(how, words)
