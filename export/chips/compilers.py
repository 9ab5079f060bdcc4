"""All compilers, by name and by chip, and which of them are installed."""

from collections.abc import Sequence
from pathlib import Path

from export.chips.arm import Arm
from export.chips.compiler import Compiler
from export.chips.intel import Intel
from export.chips.nvidia import Nvidia
from export.chips.qualcomm import Qualcomm
from export.chips.rockchip import Rockchip
from export.chips.sophgo import Sophgo

COMPILERS: dict[str, Compiler] = {
    each.name: each for each in (Arm(), Qualcomm(), Rockchip(), Sophgo(), Intel(), Nvidia())
}
TARGETS: dict[str, Compiler] = {target: each for each in COMPILERS.values() for target in each.targets}
"""The compiler of each chip."""


def python_of(compiler: Compiler, environments: Path) -> Path:
    """The interpreter of a compiler's environment."""
    return environments.absolute() / compiler.name / "bin" / "python"


def installed(environments: Path) -> list[Compiler]:
    """The compilers that have an environment."""
    return [each for each in COMPILERS.values() if python_of(each, environments).exists()]


def require(targets: Sequence[str], environments: Path) -> None:
    """Raises InputError if a target's compiler has no environment."""
    for target in targets:
        compiler = TARGETS[target]
        if not python_of(compiler, environments).exists():
            from codec.errors import InputError  # here: the compilers' environments have no codec

            raise InputError(
                f"--target {target}: {environments / compiler.name} has no compiler for it; run "
                f"`make npu CHIP={compiler.name}`, which installs {compiler.package} there"
            )
