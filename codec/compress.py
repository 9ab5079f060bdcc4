"""`python -m codec.compress`: pictures to files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coco224.photographs.decode import SUFFIXES, BadPhotograph, read_photograph
from codec.cli import run
from codec.convert import Conversion
from codec.convert import main as convert_all
from codec.errors import InputError

if TYPE_CHECKING:
    from codec.files import FileCodec


def compress_file(codec: "FileCodec", source: Path, target: Path) -> None:
    """Compresses a JPEG, PNG, BMP or WebP picture, as upright RGB, to a file; InputError if it is not a picture."""
    import torch

    from coco224.files import whole_or_absent

    try:
        pixels = read_photograph(source).pixels()
    except BadPhotograph as error:
        raise InputError(f"not a picture: {error}") from error
    (data,) = codec.compress(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with whole_or_absent(target) as beside:
        beside.write_bytes(data)


CONVERSION = Conversion(
    name="codec.compress",
    description="Compresses a picture, or a folder of pictures to .bin files.",
    reads=SUFFIXES,
    folder_suffix=".bin",
    writes=None,
    convert=compress_file,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return convert_all(CONVERSION, argv)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


if __name__ == "__main__":
    cli()
