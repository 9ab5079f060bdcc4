"""torch.compile in a run: whether it is wanted, whether it can work, and of what."""

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

NO_COMPILER = "no C++ compiler is found, which torch.compile needs"


def has_compiler() -> bool:
    """Whether this machine has a compiler for what torch.compile generates: C++ for CPUs, C for Triton's launchers."""
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    known = ["g++", "clang++"] if not torch.cuda.is_available() else ["gcc", "clang", "cc", "g++"]
    return any(shutil.which(command) for command in (*named, *known))


def check_compiler() -> None:
    """Refuses --compile true on a machine without a compiler.

    Raises:
        InputError: there is none.
    """
    if not has_compiler():
        raise InputError(f"{NO_COMPILER}: install one, or --compile false")


def check_dynamo(wanted: bool | None) -> None:
    """Refuses an Accelerate configuration whose dynamo_backend contradicts --compile.

    Raises:
        InputError: it names a backend that the options do not.
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
    """Compiles both codecs in place where --compile, or the device, wants it; returns the loss, compiled then too.

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
            "--compile true under FSDP, whose hooks are no part of a graph: leave --compile out, or use DDP"
        )
    if accelerator.device.type == "cpu":
        set_biases_apart(codec)
    # DDP's own splitting of the graph would hide communication, which takes a hundredth of a step here.
    torch._dynamo.config.optimize_ddp = False
    # Training and evaluation share the code of a forward and so its cache, with a graph for each phase of QAT
    # and, in evaluation, for symbols that fit 8 bits and that do not.
    torch._dynamo.config.recompile_limit = 16
    for model in (codec, eval_codec):  # in place: the names in the state dict stay
        model.compile(fullgraph=True, dynamic=False)  # else the other's picture size would make this one's dynamic
    compiled: Callable[..., tuple[Tensor, dict[str, Tensor]]] = torch.compile(objective, fullgraph=True)
    return compiled
