"""`python -m codec.decompress`: files back to pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from codec.bitstream.container import read_container
from codec.cli import run
from codec.convert import Conversion
from codec.file_commands import FileOptions, open_codec, run_conversion
from codec.pictures import write_pixels

if TYPE_CHECKING:
    from codec.files import FileCodec


def decompress_file(codec: "FileCodec", source: Path, target: Path, _: FileOptions) -> None:
    """Decompresses a file of codec.compress to a picture; InputError if it is damaged or of another codec."""
    (picture,) = codec.decompress([read_container(source)])
    write_pixels(target, picture.permute(1, 2, 0).cpu().numpy())


CONVERSION = Conversion(
    name="codec.decompress",
    reads=frozenset({".bin"}),
    folder_suffix=".png",
    writes=frozenset({".png", ".bmp"}),  # lossless formats
    open=open_codec,
    convert=decompress_file,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    description = "Decompresses a file of codec.compress, or a folder of .bin files to PNG."
    return run_conversion(CONVERSION, FileOptions, description, argv)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


if __name__ == "__main__":
    cli()
