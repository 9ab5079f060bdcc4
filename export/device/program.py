"""The command `python -m export.device`: compiles the entropy coder in C, for programs without Python."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from codec.cli import ArgumentParser, run
from codec.errors import InputError
from export.device.compiling import SOURCES, compile_command, compile_library

COMMAND, LIBRARY, HEADER = "nic", "libnic.so", "nic.h"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.device",
        usage="%(prog)s DIR [options]",
        description="Compiles the entropy coder in C with the machine's compiler (cc, or the variable CC): "
        f"the command {COMMAND}, the library {LIBRARY} and its header {HEADER}.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write them")
    parser.add_argument("--flags", default="", metavar="FLAGS", help="more flags, such as --flags=-march=native [none]")
    given = parser.parse_args(argv)
    flags = given.flags.split()
    if given.folder.exists() and not given.folder.is_dir():
        raise InputError(f"{given.folder} is no folder; give another name")
    given.folder.mkdir(parents=True, exist_ok=True)
    compile_command(given.folder / COMMAND, flags)
    compile_library(given.folder / LIBRARY, flags)
    shutil.copyfile(SOURCES / HEADER, given.folder / HEADER)
    print(f"{given.folder}: {COMMAND}, {LIBRARY}, {HEADER}")
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)
