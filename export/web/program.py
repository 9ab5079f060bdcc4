"""The command `python -m export.web`: writes a page that encodes and decodes photographs in the browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from coco224.errors import counted
from codec.cli import ArgumentParser, run
from codec.errors import InputError
from export.web.building import write_page


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.web",
        usage="%(prog)s DIR --encoder FILE.onnx .. --decoder FILE.onnx .. [options]",
        description="Writes a page that encodes and decodes photographs in the browser, for any static server.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write the page")
    parser.add_argument(
        "--encoder",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE.onnx",
        help="exported encoders, one for each choice on the page",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE.onnx",
        help="exported decoders, in the same order",
    )
    parser.add_argument("--name", nargs="+", metavar="NAME", help="names of the choices [those of the encoders' files]")
    parser.add_argument(
        "--onnxruntime",
        type=Path,
        default=Path("node_modules/onnxruntime-web"),
        metavar="DIR",
        help="the npm package onnxruntime-web [node_modules/onnxruntime-web]",
    )
    given = parser.parse_args(argv)
    names = given.name or [path.stem for path in given.encoder]
    if not len(given.encoder) == len(given.decoder) == len(names):
        raise InputError(
            f"{counted(len(given.encoder), 'encoder')}, {counted(len(given.decoder), 'decoder')} and "
            f"{counted(len(names), 'name')}; give as many of each"
        )
    write_page(given.folder, list(zip(names, given.encoder, given.decoder, strict=True)), given.onnxruntime)
    print(f"{given.folder}: python -m http.server --directory {given.folder}")
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)
