"""`python -m codec.compress`: pictures to files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coco224.photographs.decode import SUFFIXES, BadPhotograph, read_photograph
from codec.cli import run
from codec.convert import Conversion, FileOptions
from codec.convert import main as convert_all
from codec.errors import InputError
from codec.targets import TargetOptions, code, only_rate

if TYPE_CHECKING:
    from codec.files import FileCodec


@dataclass(frozen=True)
class CompressOptions(TargetOptions, FileOptions):
    def deciding(self) -> list[str]:
        return [f"{name} {value}" for name, value in self.given_targets.items()]


def open_codec(options: FileOptions, threads: int | None) -> "FileCodec":
    """The codec of the options."""
    from codec.files import open_file_codec

    return open_file_codec(options.checkpoint, options.plugin, threads)


def compress_file(codec: "FileCodec", source: Path, target: Path, options: CompressOptions) -> None:
    """Compresses a JPEG, PNG, BMP or WebP picture, as upright RGB, to a file.

    Raises:
        InputError: it is not a picture, or no rate meets the target.
    """
    import torch

    from coco224.files import whole_or_absent

    try:
        pixels = read_photograph(source).pixels()
    except BadPhotograph as error:
        raise InputError(f"not a picture: {error}") from error
    data = code(codec.codable(torch.from_numpy(pixels).permute(2, 0, 1)), options)
    with whole_or_absent(target) as beside:
        beside.write_bytes(data)


def check(codec: "FileCodec", options: CompressOptions) -> None:
    """Refuses a choice of the rate for a codec that has one rate."""
    from codec.bitstream.rate_coder import RateCoder

    if options.given_targets and not isinstance(codec.coder, RateCoder):
        raise InputError(only_rate(options))


CONVERSION = Conversion(
    name="codec.compress",
    description="Compresses a picture, or a folder of pictures to .bin files.",
    reads=SUFFIXES,
    folder_suffix=".bin",
    writes=None,
    open=open_codec,
    convert=compress_file,
    options=CompressOptions,
    check=check,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return convert_all(CONVERSION, argv)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


if __name__ == "__main__":
    cli()
