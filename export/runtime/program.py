"""The command: `python -m export.runtime`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from coco224.files import read_regular, whole_or_absent
from codec.cli import ArgumentParser, run
from codec.errors import InputError
from export.runtime.coding import Pixels, decode, encode
from export.runtime.session import BACKENDS, Model


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.runtime",
        usage="%(prog)s {encode,decode} SOURCE TARGET --model FILE.onnx [options]",
        description="Compresses a picture with an exported encoder, or decompresses one with an exported decoder.",
    )
    parser.add_argument("direction", choices=("encode", "decode"), help="picture to file, or file to picture")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file to read")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file to write")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.onnx", help="exported encoder or decoder")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="entropy tables [beside the model]")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what runs the model [%(default)s]")
    given = parser.parse_args(argv)
    if not given.source.is_file():
        raise InputError(f"{given.source}: no such file")
    if given.direction == "decode" and given.target.suffix.lower() not in (".png", ".bmp"):
        raise InputError(f"{given.target}: give a name that ends in .png or .bmp")
    try:
        model = Model(given.model, f"{given.direction}r", given.tables, given.backend)
        convert(given.direction, given.source, given.target, model)
    except MemoryError as error:
        raise InputError(f"{given.source}: it does not fit into memory") from error
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def convert(direction: str, source: Path, target: Path, model: Model) -> None:
    """A picture to a file ("encode") or a file to a picture ("decode").

    Raises:
        InputError: the source is damaged or of another kind, or the target cannot be written.
    """
    from PIL import Image

    data = encode(read_picture(source), model) if direction == "encode" else b""
    picture = decode_file(source, model) if direction == "decode" else None
    try:
        with whole_or_absent(target) as beside:
            if picture is None:
                beside.write_bytes(data)
            else:
                Image.fromarray(picture).save(beside, target.suffix[1:])
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from error


def decode_file(path: Path, model: Model) -> Pixels:
    """The picture of a file; an InputError names the file."""
    try:
        return decode(read_regular(path), model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_picture(path: Path) -> Pixels:
    """A JPEG, PNG, BMP or WebP picture as upright RGB, [H, W, 3]; InputError if it is not such a picture."""
    from coco224.photographs.decode import BadPhotograph, read_photograph

    try:
        return read_photograph(path).pixels()
    except BadPhotograph as error:
        raise InputError(f"{path} is no picture: {error}") from error
