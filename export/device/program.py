"""The command `python -m export.device`: compiles the entropy coder in C, for programs without Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from coco224.files import check_writable, read_regular, whole_or_absent, write_whole
from codec.cli import ArgumentParser, run
from codec.errors import InputError
from export.device.compiling import SOURCES, compile_command, compile_library, compiler

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
    check_writable("DIR", given.folder)
    header = read_regular(SOURCES / HEADER)
    check_free(given.folder, header)
    compiler()
    # The header, by which the folder is known again, comes first: after a kill the same command goes on.
    write_whole(given.folder / HEADER, header)
    with whole_or_absent(given.folder / COMMAND) as beside:
        compile_command(beside, flags)
    with whole_or_absent(given.folder / LIBRARY) as beside:
        compile_library(beside, flags)
    print(f"{given.folder}: {COMMAND}, {LIBRARY}, {HEADER}")
    return 0


def check_free(folder: Path, header: bytes) -> None:
    """Raises InputError if the folder has files of these names that no earlier command wrote: then the header differs.

    Args:
        header: of this version; only its first line is compared.
    """
    there = [name for name in (HEADER, COMMAND, LIBRARY) if (folder / name).exists()]
    try:
        ours = bool(there) and read_regular(folder / HEADER).startswith(header[: header.index(b"\n")])
    except OSError:
        ours = False
    if there and not ours:
        raise InputError(f"{folder / there[0]} is not of this command: name another folder")


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)
