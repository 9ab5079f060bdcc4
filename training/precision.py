"""Local FP32: regions of a codec that compute in FP32, while autocast applies to the rest."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from codec.cli import NOT_NEGATIVE, POSITIVE, OptionGroup, at_least, option
from codec.errors import InputError
from codec.network.modules import mix_in

LIKELIHOODS = ("entropy_bottleneck", "gaussian_conditional")

_NORMEXP = re.compile(
    r"_?(div|true_divide|reciprocal|r?sqrt|pow|float_power|exp2?|expm1|sigmoid|log_sigmoid_forward|tanh|silu|mish"
    r"|softplus|elu|gelu|erf|log(2|10|1p|addexp2?|sumexp)?|(log_)?softmax|\w*norm(_\w+)?)_?"
)
"""Names of aten operators for normalization, division, roots, exponentials and logarithms, in place or not."""


@dataclass(frozen=True)
class NumericsOptions(OptionGroup):
    amp: bool = option(True, "mixed precision", shown="true; false with --qat true")
    amp_dtype: Literal["bf16", "fp16"] = option("bf16", "number format of mixed precision")
    local_fp32: Literal["entropy", "none", "entropy+decoder", "all_normexp", "custom"] = option(
        "entropy", "regions that stay in FP32"
    )
    local_fp32_custom: str | None = option(
        None, "globs of module names for --local_fp32 custom, comma-separated", metavar="GLOBS"
    )
    max_grad_norm: float = option(1.0, "clip gradients to this norm; 0: never", rule=NOT_NEGATIVE)
    overflow_check: bool = option(True, "skip a step with NaN, Inf or too large values, and name the module")
    overflow_tol: float = option(1e4, "largest absolute value that is not a fault", rule=POSITIVE)
    overflow_patience: int = option(10, "stop the run after so many skipped steps in a row", rule=at_least(1))
    compile: bool | None = option(None, "torch.compile", shown="per device")
    deterministic: bool = option(
        True, "on a GPU, only algorithms that give the same bits in every run; false: the fastest ones"
    )
    channels_last: bool | None = option(None, "channels_last memory layout", shown="per device")
    seed: int = option(
        0,
        "seed of weights, order, crops and noise",
        rule=(lambda value: 0 <= value < 2**32, "must be within 0..2^32-1, the range of NumPy"),
        decides=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_fp32 == "custom" and not self.local_fp32_custom:
            raise InputError("--local_fp32 custom needs --local_fp32_custom GLOBS: which modules stay in FP32")
        if self.local_fp32_custom is not None and self.local_fp32 != "custom":
            raise InputError(
                f"--local_fp32_custom {self.local_fp32_custom} needs --local_fp32 custom: add that, or leave it out"
            )


POLICIES: tuple[str, ...] = get_args(NumericsOptions.__annotations__["local_fp32"])
"""The values of --local_fp32: which regions of a codec stay in FP32."""


def memory_format(numerics: NumericsOptions) -> torch.memory_format:
    """channels_last by default: convolutions run faster in it, on CPUs (oneDNN) and on tensor cores."""
    return torch.contiguous_format if numerics.channels_last is False else torch.channels_last


def apply_local_fp32(model: nn.Module, policy: str, globs: Sequence[str] = ()) -> list[str]:
    """Marks the modules of `local_fp32_modules` as FP32 regions and returns their names.

    The forward of a marked module turns autocast off and casts half-precision inputs to float32, so that it and
    all modules that it calls compute in FP32. Its other methods, state-dict keys, parameters and hooks do not
    change. Marking it twice has no further effect.
    """
    names = local_fp32_modules(model, policy, globs)
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, Float32Region):
            mix_in(module, Float32Region)
    return names


def local_fp32_modules(model: nn.Module, policy: str, globs: Sequence[str] = ()) -> list[str]:
    """Names of the modules that a policy keeps in FP32, outermost only, in the model's order.

    The model is a codec with `entropy_bottleneck`, `g_a` and `g_s`. `none`: no module; `entropy`: the entropy
    model; `entropy+decoder`: the entropy model and g_s; `all_normexp`: the entropy model and every module of g_a
    and g_s with a normalization, division, root, exponential or logarithm, found by running a copy of them on a
    grey 64x64 picture; `custom`: modules whose name matches one of the globs.

    Raises InputError for an unknown policy, for `custom` without globs, and for a glob that matches nothing.
    """
    entropy = [name for name in LIKELIHOODS if hasattr(model, name)]
    match policy:
        case "none":
            names = []
        case "entropy":
            names = entropy
        case "entropy+decoder":
            names = [*entropy, "g_s"]
        case "all_normexp":
            names = [*entropy, *_normexp_modules(model)]
        case "custom":
            names = _matching_modules(model, globs)
        case _:
            raise InputError(f"--local_fp32 {policy}: no such policy; use one of {', '.join(POLICIES)}")
    inside = tuple(f"{name}." for name in names)
    return [name for name, _ in model.named_modules() if name in names and not name.startswith(inside)]


def fit_to_gpu(numerics: NumericsOptions, typed: bool, device: torch.device) -> NumericsOptions:
    """The options with fp16 instead of bf16 on a GPU that has no bf16: those before Ampere, compute capability 8.0.

    Args:
        typed: --amp_dtype is on the command line, so that it cannot be another one.

    Raises:
        InputError: bf16 was typed, and this GPU does not have it.
    """
    wants_bf16 = device.type == "cuda" and numerics.amp and numerics.amp_dtype == "bf16"
    if not wants_bf16 or torch.cuda.is_bf16_supported(including_emulation=False):
        return numerics
    if typed:
        raise InputError(f"--amp_dtype bf16: {torch.cuda.get_device_name(device)} has no bf16; use --amp_dtype fp16")
    return replace(numerics, amp_dtype="fp16")


def is_emulated(dtype: str, device: torch.device) -> bool:
    """Whether a device has no instructions for convolutions in a half precision ("bf16", "fp16").

    Such a CPU (no AVX512, no AMX) is many times slower in half precision than in FP32.
    """
    supported = {"bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported, "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported}
    return device.type == "cpu" and not supported[dtype]()


class Float32Region(nn.Module):
    """The mixin that `apply_local_fp32` gives a module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        args, kwargs = tree_map(_to_float32, (args, kwargs))
        with torch.autocast(device.type if device else "cpu", enabled=False):
            return super().forward(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def _matching_modules(model: nn.Module, globs: Sequence[str]) -> list[str]:
    if not globs:
        raise InputError("--local_fp32 custom needs --local_fp32_custom with the modules' names, like 'g_s.*'")
    names = [name for name, _ in model.named_modules() if name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(
                f"--local_fp32_custom {glob}: no module has this name; there are {', '.join(names[:3])} ..."
            )
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


@torch.no_grad()
def _normexp_modules(model: nn.Module) -> list[str]:
    x = torch.full((1, 3, 64, 64), 0.5, device=next(model.parameters()).device)
    found: list[str] = []
    for part in ("g_a", "g_s"):
        # A copy, so that running statistics, observers and the training flag of the model do not change.
        transform = copy.deepcopy(model.get_submodule(part)).eval()
        with torch.autocast(x.device.type, enabled=False), _NormexpWatch(part, transform) as watch:
            x = transform(x)
        found += watch.found
    return found


class _NormexpWatch(TorchDispatchMode):
    """Records the modules that run an operator of `_NORMEXP`: the innermost module whose forward is active."""

    def __init__(self, root: str, transform: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self._running: list[str] = []
        for name, module in transform.named_modules(prefix=root):
            module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name))
            module.register_forward_hook(lambda *_: self._leave())

    def _leave(self) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _NORMEXP.fullmatch(func.overloadpacket.__name__):
            self.found.append(self._running[-1])
        return func(*args, **(kwargs or {}))
