"""The command: `python -m export.runtime`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from coco224.files import check_file, in_words, read_regular, same_file, whole_or_absent
from codec.cli import ArgumentParser, run
from codec.errors import InputError
from codec.targets import TargetOptions
from export.runtime.coding import Pixels, decode, encode
from export.runtime.session import BACKENDS, H_A_SUFFIX, TABLES_SUFFIX, Model

_TARGETS = frozenset(field.name for field in fields(TargetOptions))


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
    parser.add_argument(
        "--decoder", type=Path, metavar="FILE.onnx", help="decoder that --target_psnr measures with [none]"
    )
    parser.add_dataclass("rate of an encoded file", TargetOptions)
    given = parser.parse_args(argv)
    targets = TargetOptions(**{name: value for name, value in vars(given).items() if name in _TARGETS})
    if targets.given_targets and given.direction == "decode":
        raise InputError(f"--{next(iter(targets.given_targets))} is for encode: a file has its rate")
    if (targets.target_psnr is None) != (given.decoder is None):
        raise InputError("--target_psnr and --decoder FILE.onnx, which measures it, go together: give both or neither")
    if not given.source.is_file():
        raise InputError(f"{given.source}: no such file")
    if same_file(given.source, given.target):
        raise InputError(f"{given.target} is the source itself; name another file")
    if given.direction == "decode" and given.target.suffix.lower() not in (".png", ".bmp"):
        raise InputError(f"{given.target}: give a name that ends in .png or .bmp")
    beside = [given.model.with_suffix(suffix) for suffix in (TABLES_SUFFIX, H_A_SUFFIX)]
    check_file("TARGET", given.target, [each for each in (given.model, given.tables, given.decoder, *beside) if each])
    try:
        model = Model(given.model, f"{given.direction}r", given.tables, given.backend)
        decoder = Model(given.decoder, "decoder", backend=given.backend) if given.decoder else None
        convert(given.direction, given.source, given.target, model, targets, decoder)
    except MemoryError as error:
        raise InputError(f"{given.source}: it does not fit into memory") from error
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def convert(
    direction: str,
    source: Path,
    target: Path,
    model: Model,
    targets: TargetOptions | None = None,
    decoder: Model | None = None,
) -> None:
    """A picture to a file ("encode") or a file to a picture ("decode"); targets and decoder as those of `encode`.

    Raises:
        InputError: the source is damaged or of another kind, no rate meets the target, or it cannot be written.
    """
    from PIL import Image

    data = encode(read_picture(source), model, targets, decoder) if direction == "encode" else b""
    picture = decode_file(source, model) if direction == "decode" else None
    try:
        with whole_or_absent(target) as beside:
            if picture is None:
                beside.write_bytes(data)
            else:
                Image.fromarray(picture).save(beside, target.suffix[1:])
    except OSError as error:
        raise InputError(f"TARGET cannot be written: {in_words(error)}") from error


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
