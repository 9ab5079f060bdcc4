"""What stands in for a GPU in a dry run, so that the code of every part runs on a CPU."""

import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.fsdp
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.setting import train
from benchmarks.harness import ROOT
from training.distributed import local_part

SYNCHRONIZES = "called a synchronizing CUDA operation"
"""What torch says in `torch.cuda.set_sync_debug_mode("warn")`."""

_INSIDE = (str(Path(torch.__file__).parent), __file__)
_fully_shard = torch.distributed.fsdp.fully_shard


class HostReads(TorchDispatchMode):
    """Inside this context `read` gets the name of each operator that would make the host wait for a GPU."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in self.READS:
            self.read(name)
        return func(*args, **(kwargs or {}))

    def read(self, name: str) -> None:
        """Warns as torch does on a GPU, of the first line outside torch."""
        outside = (frame for frame in reversed(traceback.extract_stack()) if not frame.filename.startswith(_INSIDE))
        line = next(outside)
        warnings.warn_explicit(SYNCHRONIZES, UserWarning, line.filename, line.lineno or 0)


@contextmanager
def warning_of_reads() -> Iterator[None]:
    """In this context `torch.cuda.set_sync_debug_mode` watches a CPU's operators."""
    watching = ExitStack()

    def set_mode(mode: str) -> None:
        watching.close()
        if mode == "warn":
            watching.enter_context(HostReads())

    with patch.object(torch.cuda, "set_sync_debug_mode", set_mode):
        yield


@contextmanager
def capturing() -> Iterator[None]:
    """In this context torch.compile captures graphs and runs their operators; to generate code would take a minute."""
    compiled = torch.compile
    with patch.object(torch, "compile", lambda *given, **options: compiled(*given, **options | {"backend": "eager"})):
        yield


@contextmanager
def over_gloo(sharded: bool) -> Iterator[None]:
    """In this context Accelerate runs on ranks of CPUs, over gloo: DDP, or FSDP, which it has for GPUs alone."""
    kind = DistributedType.MULTI_GPU if sharded else DistributedType.MULTI_CPU
    variables = {
        "ACCELERATE_USE_FSDP": str(sharded),
        "ACCELERATE_USE_CPU": str(not sharded),
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    with (
        patch.dict(os.environ, variables),
        patch.object(PartialState, "_prepare_backend", lambda *_: ("gloo", kind)),
        patch.object(torch.distributed.fsdp, "fully_shard", _shard_on_cpu),
    ):
        yield


def _shard_on_cpu(module: nn.Module, **settings: Any) -> FSDPModule:
    """Shards over the CPU's ranks where Accelerate left the mesh to torch, and says how much each rank holds."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    sharded = _fully_shard(module, **(settings | {"mesh": mesh}))
    shards = [local_part(parameter).numel() for parameter in module.parameters()]
    whole = sum(parameter.numel() for parameter in module.parameters())
    print(f"rank {mesh.get_local_rank()} of {mesh.size()} holds {sum(shards)} of {whole}; {shards.count(0)} are empty")
    return sharded


def train_sharded(words: Sequence[str]) -> None:
    """The training command as a rank of FSDP2 with the settings of fsdp.yaml, which a launcher puts into variables."""
    settings = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp.yaml").read_text())["fsdp_config"]
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}
    with over_gloo(sharded=True):
        train(words)
