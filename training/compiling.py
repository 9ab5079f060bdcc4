"""torch.compile in a run: whether to use it, whether it can work, and what is compiled."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._triton import has_triton_package

from codec.errors import InputError
from codec.network.codec import Codec
from training.backend import gpu_backend
from training.deconvolution import set_biases_apart
from training.distributed import is_sharded
from training.objective import RateDistortion
from training.options import Options

_OLDEST_GPU = (7, 0)  # compute capability, of Triton


def obstacle(device: torch.device) -> str:
    """Why torch.compile cannot work on this machine, and the remedy; empty if nothing is known against it."""
    on_gpu = device.type == "cuda"
    if not has_compiler(device):
        language, variable = ("C", "CC") if on_gpu else ("C++", "CXX")
        named = os.environ.get(variable)
        missing = f"{variable}={named} is none: correct or unset it" if named else "none is found: install one"
        return f"torch.compile needs a {language} compiler, and {missing}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's header Python.h, which is missing: install it (python3-dev)"
    if on_gpu and not has_triton_package():
        return "torch.compile needs Triton on a GPU, which cannot be imported: install it (pip install triton)"
    if on_gpu and torch.cuda.get_device_capability(device) < _OLDEST_GPU:
        return f"torch.compile needs a newer GPU than {torch.cuda.get_device_name(device)}: use another"
    return ""


def has_compiler(device: torch.device) -> bool:
    """Whether this machine has a compiler for torch.compile's code: C++ for CPUs, C for Triton's launchers.

    Where CXX or CC names one, no other is used.
    """
    variable, known = ("CXX", ["g++", "clang++"]) if device.type == "cpu" else ("CC", ["gcc", "clang", "cc", "g++"])
    named = os.environ.get(variable)
    return any(map(_runs, [named] if named else known))


def _runs(compiler: str) -> bool:
    """Whether a compiler is there, and starts."""
    if shutil.which(compiler) is None:
        return False
    return subprocess.run([compiler, "--version"], capture_output=True, check=False).returncode == 0


def check_compile(accelerator: Accelerator) -> None:
    """Refuses --compile true where it cannot work.

    Raises:
        InputError: under FSDP, without a compiler, or on a GPU without Triton or that is too old.
    """
    if is_sharded(accelerator):
        raise InputError(
            "--compile true with FSDP, whose hooks cannot be part of a graph: leave --compile out, or use DDP"
        )
    if reason := obstacle(accelerator.device):
        raise InputError(f"{reason}, or use --compile false")


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
    """Compiles both codecs in place, and returns the loss, compiled too; without --compile the device decides."""
    sharded, wanted = is_sharded(accelerator), options.numerics.compile
    on_gpu = accelerator.device.type == "cuda"
    if wanted is None:
        wanted = on_gpu and not sharded
        if wanted and (reason := obstacle(accelerator.device)):
            accelerator.print(f"warning     {reason}; this run is not compiled (--compile false)", file=sys.stderr)
            wanted = False
    if not wanted:
        return objective
    if not on_gpu:
        set_biases_apart(codec)
        # Torch would start processes that compile for Triton, which a CPU does not use; each imports torch.
        os.environ.setdefault("TORCH_WARM_POOL", "0")
    # DDP would split the graph to overlap communication; here communication takes only 1 % of a step.
    torch._dynamo.config.optimize_ddp = False
    # Training and evaluation share the forward's code and so its cache: one graph for each phase of QAT and,
    # in evaluation, for symbols that fit 8 bits and for symbols that do not.
    torch._dynamo.config.recompile_limit = 16
    models = [codec, eval_codec]
    if on_gpu and codec.architecture.quantization:
        # Triton's division and fused multiply-adds round differently: a runtime's integers would not be met exactly.
        models.remove(eval_codec)
    for model in models:  # in place: the names in the state dict stay
        # dynamic=False: otherwise the two picture sizes would make sizes dynamic
        model.compile(fullgraph=True, dynamic=False, backend=gpu_backend if on_gpu else "inductor")
    compiled: Callable[..., tuple[Tensor, dict[str, Tensor]]] = torch.compile(objective, fullgraph=True)
    return compiled
