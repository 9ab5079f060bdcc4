"""What the ranks must agree on."""

import os

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from codec.errors import InputError


def check_launch(accelerator: Accelerator) -> None:
    """Refuses launches whose processes do not know of each other: they would overwrite each other's files.

    Raises:
        InputError: the launcher's WORLD_SIZE is not the number of processes that Accelerate sees.
    """
    launched = int(os.environ.get("WORLD_SIZE") or 1)  # some schedulers export an empty one
    if launched != accelerator.num_processes:
        raise InputError(
            f"the launcher started {launched} processes but Accelerate sees {accelerator.num_processes}, so they would "
            "overwrite each other's files; on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
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


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (a collective call), or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reduce_over_ranks(values: Tensor, how: str) -> None:
    """Makes each value its "sum" or "max" over all ranks, in place, without a host read."""
    if torch.distributed.is_initialized():
        operators = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}
        torch.distributed.all_reduce(values, operators[how])


def sum_over_ranks(values: Tensor) -> list[float]:
    """The sum of a 1-D tensor over all ranks, read by the host."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    result: list[float] = values.tolist()
    return result
