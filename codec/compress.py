"""`python -m codec.compress`: pictures to files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coco224.files import write_whole
from coco224.photographs.decode import SUFFIXES
from codec.cli import run
from codec.convert import Conversion
from codec.file_commands import FileOptions, open_codec, run_conversion
from codec.pictures import read_pixels
from codec.targets import TargetOptions, check_rate, code

if TYPE_CHECKING:
    from codec.files import FileCodec


@dataclass(frozen=True)
class CompressOptions(TargetOptions, FileOptions):
    """`deciding` is that of the targets."""


def compress_file(codec: "FileCodec", source: Path, target: Path, options: CompressOptions) -> None:
    """Compresses a picture to a file.

    Raises:
        InputError: it is not a picture, or no rate meets the target.
    """
    import torch

    pixels = torch.from_numpy(read_pixels(source)).permute(2, 0, 1)
    write_whole(target, code(codec.codable(pixels), options))


def check(codec: "FileCodec", options: CompressOptions) -> None:
    """Refuses a choice of the rate for a codec that has one rate."""
    check_rate(codec.coder, options)


CONVERSION = Conversion(
    name="codec.compress",
    reads=SUFFIXES,
    folder_suffix=".bin",
    writes=None,
    open=open_codec,
    convert=compress_file,
    check=check,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    description = "Compresses a picture, or a folder of pictures to .bin files."
    return run_conversion(CONVERSION, CompressOptions, description, argv)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


if __name__ == "__main__":
    cli()
