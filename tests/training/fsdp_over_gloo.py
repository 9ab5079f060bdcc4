"""What each rank does for test_fsdp.py, which launches it: FOLDER, and the training commands in its runs.json.

The launcher reads accelerate_configs/fsdp.yaml, and Accelerate shards the codec as on GPUs. Only its choice of a device
is changed: Accelerate has FSDP for GPUs alone, and would choose NCCL.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.gpu.standins import over_gloo
from train_accel import main


def train(how: str, words: list[str]) -> None:
    """One command, under FSDP or DDP; the process group stays for the next one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with over_gloo(sharded=how == "fsdp"):
        assert main(words) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    patch.object(Accelerator, "end_training", lambda self: None).start()
    for how, words in json.loads((Path(sys.argv[1]) / "runs.json").read_text()):
        train(how, words)
