"""torch.compile in a run: whether to use it, whether it can work, and what is compiled."""

import os
import shutil
import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from codec.errors import InputError
from codec.network.codec import Codec
from training.deconvolution import set_biases_apart
from training.distributed import is_sharded
from training.objective import RateDistortion
from training.options import Options

NO_COMPILER = "torch.compile needs a C++ compiler, and none is found"


def has_compiler() -> bool:
    """Whether this machine has a compiler for torch.compile's code: C++ for CPUs, C for Triton's launchers."""
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    known = ["g++", "clang++"] if not torch.cuda.is_available() else ["gcc", "clang", "cc", "g++"]
    return any(shutil.which(command) for command in (*named, *known))


def check_compiler() -> None:
    """Refuses --compile true on a machine without a compiler.

    Raises:
        InputError: there is none.
    """
    if not has_compiler():
        raise InputError(f"{NO_COMPILER}: install one, or use --compile false")


def check_dynamo(wanted: bool | None) -> None:
    """Refuses an Accelerate configuration whose dynamo_backend contradicts --compile.

    Raises:
        InputError: the configuration names a backend, and --compile is not true.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() or "no"
    if backend != "no" and not (wanted and backend == "inductor"):
        raise InputError(
            f"the Accelerate configuration says dynamo_backend {backend}; set it to 'no' there: --compile is this "
            "program's own"
        )


def compile_all(
    codec: Codec, eval_codec: Codec, objective: RateDistortion, options: Options, accelerator: Accelerator
) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """Compiles both codecs in place, and returns the loss, compiled too; without --compile the device decides.

    Raises:
        InputError: --compile true under FSDP.
    """
    sharded, wanted = is_sharded(accelerator), options.numerics.compile
    if wanted is None:
        wanted = accelerator.device.type == "cuda" and not sharded
        if wanted and not has_compiler():
            accelerator.print(f"warning     {NO_COMPILER}; this run is not compiled", file=sys.stderr)
            wanted = False
    if not wanted:
        return objective
    if sharded:
        raise InputError(
            "--compile true with FSDP, whose hooks cannot be part of a graph: leave --compile out, or use DDP"
        )
    if accelerator.device.type == "cpu":
        set_biases_apart(codec)
    # DDP would split the graph to overlap communication; here communication takes only 1 % of a step.
    torch._dynamo.config.optimize_ddp = False
    # Training and evaluation share the forward's code and so its cache: one graph for each phase of QAT and,
    # in evaluation, for symbols that fit 8 bits and for symbols that do not.
    torch._dynamo.config.recompile_limit = 16
    for model in (codec, eval_codec):  # in place: the names in the state dict stay
        model.compile(fullgraph=True, dynamic=False)  # otherwise the two picture sizes would make sizes dynamic
    compiled: Callable[..., tuple[Tensor, dict[str, Tensor]]] = torch.compile(objective, fullgraph=True)
    return compiled
