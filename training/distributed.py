"""The launch of a run: checks of the launcher and of Accelerate, and collective calls."""

import importlib.util
import os
from datetime import timedelta

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    LoggerType,
    broadcast,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from coco224.errors import counted
from codec.errors import InputError
from codec.evaluation.ranks import launched_processes
from training.reporting import ReportingOptions

# Programs that start several processes which do not know of each other, and the variable with their number.
_STARTERS = {"srun": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "mpirun": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")}


def check_launch(accelerator: Accelerator) -> None:
    """Refuses launches whose processes are not connected: they would overwrite each other's files.

    Raises:
        InputError: the launcher's WORLD_SIZE is not the number of processes that Accelerate sees, or srun or mpirun
            started several without a launcher.
    """
    launched = launched_processes()
    if launched is not None and launched != accelerator.num_processes:
        raise InputError(
            f"the launcher started {counted(launched, 'process')} but Accelerate sees {accelerator.num_processes}, so "
            "they would overwrite each other's files; on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu; "
            "for one process: unset WORLD_SIZE"
        )
    if launched is None and accelerator.num_processes == 1:
        for starter, names in _STARTERS.items():
            name = next((name for name in names if os.environ.get(name, "").isdigit()), None)
            if name and int(os.environ[name]) > 1:
                raise InputError(
                    f"{starter} started {os.environ[name]} tasks that do not know of each other ({name}): start one "
                    f"task per node, with accelerate launch in it; for one process: unset {name}"
                )


def check_precision(amp_dtype: str | None) -> None:
    """Refuses an Accelerate configuration whose mixed precision contradicts the options.

    Args:
        amp_dtype: "bf16" or "fp16" with AMP, None without.

    Raises:
        InputError: they differ; Accelerate's "no" leaves the choice to the options.
    """
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured not in ("no", amp_dtype):
        wanted = f"--amp_dtype {amp_dtype}" if amp_dtype else "--amp false"
        raise InputError(
            f"the Accelerate configuration says mixed_precision {configured} and the options say {wanted}; set "
            "mixed_precision to 'no' there: autocast is this program's own"
        )


def make_accelerator(reporting: ReportingOptions, project_dir: str, timeout: int) -> Accelerator:
    """An Accelerator for launch, wrapping and trackers; precision and accumulation are handled by the loop.

    Args:
        timeout: seconds that a process waits for the others in a collective call.

    Raises:
        InputError: Accelerate does not know a tracker, or it is not installed; or the environment makes no sense.
    """
    trackers = [name.strip() for name in (reporting.report_to or "").split(",") if name.strip()]
    trackers += ["wandb"] * (reporting.wandb and "wandb" not in trackers)
    known = [str(name) for name in LoggerType if name != LoggerType.ALL]
    for name in trackers:
        if name not in known:
            raise InputError(f"--report_to {name}: Accelerate has no such tracker; use one of {', '.join(known)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--report_to {name}: {name} is not installed; pip install {name}, or leave it out")
    handlers = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
    ]
    launched_processes()  # with a wrong RANK it would wait for processes that nobody starts
    try:
        return Accelerator(
            mixed_precision="no",
            dynamo_backend="no",
            log_with=trackers or None,
            project_dir=project_dir,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=handlers,
        )
    except (ImportError, ValueError, RuntimeError) as error:  # what it makes of the environment
        raise InputError(
            f"Accelerate cannot start ({error}): correct its configuration, and variables like ACCELERATE_.. or RANK"
        ) from error


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP shards the codec over the ranks."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def broadcast_parameters(model: nn.Module) -> None:
    """Copies parameters and buffers of rank 0 to all ranks: all computed the same, but may have rounded differently."""
    for parameter in model.parameters():
        broadcast(parameter.data)
    broadcast_buffers(model)


def broadcast_buffers(model: nn.Module) -> None:
    """Copies the buffers of rank 0 to all ranks. In training each rank has its own statistics of a BatchNorm, say."""
    for buffer in model.buffers():
        if buffer.numel():
            broadcast(buffer.data)


def keep_buffers(model: nn.Module) -> None:
    """Ends DDP's broadcast of all buffers before every forward. Its option would leave out the one at the start too."""
    if isinstance(model, DistributedDataParallel):
        model.broadcast_buffers = False


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered (a collective call), or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, which may be empty, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reduce_over_ranks(values: Tensor, how: str) -> None:
    """Replaces each value by its "sum" or "max" over all ranks, in place, without a host read."""
    if torch.distributed.is_initialized():
        operators = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}
        torch.distributed.all_reduce(values, operators[how])


def sum_over_ranks(values: Tensor) -> list[float]:
    """The sum of a 1-D tensor over all ranks, read by the host."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    result: list[float] = values.tolist()
    return result
