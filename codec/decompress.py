"""`python -m codec.decompress`: files back to pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from codec.cli import run
from codec.convert import Conversion, FileOptions
from codec.convert import main as convert_all

if TYPE_CHECKING:
    from codec.files import FileCodec


def open_codec(options: FileOptions, threads: int | None) -> "FileCodec":
    """The codec of the options."""
    from codec.files import open_file_codec

    return open_file_codec(options.checkpoint, options.plugin, threads)


def decompress_file(codec: "FileCodec", source: Path, target: Path, _: FileOptions) -> None:
    """Decompresses a file of codec.compress to a picture; InputError if it is damaged or of another codec."""
    from PIL import Image

    from coco224.files import read_regular, whole_or_absent

    (picture,) = codec.decompress([read_regular(source)])
    with whole_or_absent(target) as beside:
        image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        image.save(beside, Image.registered_extensions()[target.suffix.lower()])


CONVERSION = Conversion(
    name="codec.decompress",
    description="Decompresses a file of codec.compress, or a folder of .bin files to PNG.",
    reads=frozenset({".bin"}),
    folder_suffix=".png",
    writes=frozenset({".png", ".bmp"}),  # lossless formats
    open=open_codec,
    convert=decompress_file,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return convert_all(CONVERSION, argv)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


if __name__ == "__main__":
    cli()
