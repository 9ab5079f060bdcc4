"""Compiles the coder's C files with the machine's C compiler."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from codec.errors import InputError

SOURCES = Path(__file__).parent / "src"
CODER = ("container.c", "network.c", "rates.c", "rows.c", "tables.c")
FLAGS = ("-std=c99", "-O3")
LEAST_FREE = 1 << 20
"""Bytes of a disk: with less, a linker that fails has found it full, and says only that it failed."""


def compiler() -> list[str]:
    """The C compiler: what the variable CC says, or cc.

    Raises:
        InputError: there is none.
    """
    given = os.environ.get("CC", "cc")
    try:
        words = shlex.split(given) or ["cc"]
    except ValueError as error:
        raise InputError(f"CC={given} in the environment: {error}; write it as on a command line") from None
    if shutil.which(words[0]) is None:
        raise InputError(f"there is no C compiler {words[0]}; install one (apt-get install gcc), or set CC to yours")
    return words


def compile_library(target: Path, flags: Sequence[str] = ()) -> None:
    """Writes the coder as a shared library.

    Raises:
        InputError: there is no C compiler, or it fails.
    """
    compile_files(CODER, target, ("-fPIC", "-shared", *flags))


def compile_command(target: Path, flags: Sequence[str] = ()) -> None:
    """Writes the coder as a command; raises as `compile_library`."""
    compile_files((*CODER, "command.c"), target, flags)


def compile_files(names: Sequence[str], target: Path, flags: Sequence[str]) -> None:
    """Compiles C files, of `SOURCES` if no other folder is given; raises as `compile_library`."""
    sources = [str(SOURCES / name) for name in names]
    words = [*compiler(), *FLAGS, *sources, *flags, "-o", str(target)]  # a library comes after its users
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        if shutil.disk_usage(target.parent).free < LEAST_FREE:
            raise InputError(f"the disk of {target.parent} is full: make room, and give the command again")
        raise InputError(f"{words[0]} does not compile the coder: {complaint(done.stderr)}")


def complaint(said: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = said.strip().splitlines() or ["it says nothing"]
    return next((line for line in lines if "error" in line), lines[0])
