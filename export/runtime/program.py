"""The command: `python -m export.runtime`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, NoReturn

from coco224.files import write_whole
from coco224.photographs.decode import SUFFIXES
from codec.bitstream.container import read_container
from codec.cli import ArgumentParser, OptionGroup, option, run
from codec.convert import Conversion, convert
from codec.errors import InputError
from codec.pictures import read_pixels, write_pixels
from codec.targets import TargetOptions, check_rate
from export.runtime.coding import decode, encode
from export.runtime.session import BACKENDS, H_A_SUFFIX, TABLES_SUFFIX, Model

_TARGETS = frozenset(field.name for field in fields(TargetOptions))


@dataclass(frozen=True)
class FolderOptions(OptionGroup):
    overwrite: bool = option(False, "replace files that exist in a folder; a single file is always replaced")


@dataclass(frozen=True)
class RuntimeOptions:
    """What the files are made with.

    Attributes:
        part: "encoder" or "decoder", which the model is.
        model, tables, decoder: files; None: the tables beside the model, and no decoder.
        backend: what runs the models.
        targets: which rate.
        overwrite: files that exist are replaced.
    """

    part: str
    model: Path
    tables: Path | None
    backend: str
    decoder: Path | None
    targets: TargetOptions
    overwrite: bool
    num_proc: ClassVar[int] = 1  # the backend uses all cores

    def inputs(self) -> list[Path]:
        """The models and what lies beside them."""
        h_a = self.model.with_suffix(H_A_SUFFIX)
        beside = [self.tables or self.model.with_suffix(TABLES_SUFFIX), *([h_a] if h_a.is_file() else [])]
        decoder = [self.decoder, self.decoder.with_suffix(TABLES_SUFFIX)] if self.decoder else []
        return [self.model, *beside, *decoder]

    def deciding(self) -> list[str]:
        """The backend and the rate."""
        return [self.backend, *self.targets.deciding()]


@dataclass(frozen=True)
class Models:
    """The model, and the decoder that a target of PSNR is measured with."""

    model: Model
    decoder: Model | None


def open_models(options: RuntimeOptions, threads: int | None) -> Models:
    """The models of the options; InputError if they cannot be opened."""
    del threads  # of one process, which takes all
    model = Model(options.model, options.part, options.tables, options.backend)
    return Models(model, Model(options.decoder, "decoder", backend=options.backend) if options.decoder else None)


def encode_file(models: Models, source: Path, target: Path, options: RuntimeOptions) -> None:
    """Encodes a picture to a file.

    Raises:
        InputError: it is not a picture, or no rate meets the target.
    """
    write_whole(target, encode(read_pixels(source), models.model, options.targets, models.decoder))


def check(models: Models, options: RuntimeOptions) -> None:
    """Refuses a choice of the rate for a codec that has one rate."""
    check_rate(models.model.coder, options.targets)


def decode_file(models: Models, source: Path, target: Path, _: RuntimeOptions) -> None:
    """Decodes a file to a picture; InputError if it is damaged or of another codec."""
    write_pixels(target, decode(read_container(source), models.model))


CONVERSIONS = {
    "encode": Conversion(
        name="export.runtime",
        reads=SUFFIXES,
        folder_suffix=".bin",
        writes=None,
        open=open_models,
        convert=encode_file,
        check=check,
    ),
    "decode": Conversion(
        name="export.runtime",
        reads=frozenset({".bin"}),
        folder_suffix=".png",
        writes=frozenset({".png", ".bmp"}),  # lossless formats
        open=open_models,
        convert=decode_file,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
        InputError: the options cannot work, and nothing was written.
        SomeFailed: some files failed, and all others are written.
    """
    parser = ArgumentParser(
        prog="python -m export.runtime",
        usage="%(prog)s {encode,decode} SOURCE TARGET --model FILE.onnx [options]",
        description="Compresses a picture, or a folder of pictures, with an exported encoder; or decompresses a file, "
        "or a folder of .bin files to PNG, with an exported decoder.",
    )
    parser.add_argument("direction", choices=("encode", "decode"), help="pictures to files, or files to pictures")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file, or a folder with its subfolders")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the file, or the folder, to write")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.onnx", help="exported encoder or decoder")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="entropy tables [beside the model]")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what runs the model [%(default)s]")
    parser.add_argument(
        "--decoder", type=Path, metavar="FILE.onnx", help="decoder that --target_psnr measures with [none]"
    )
    parser.add_dataclass("folders", FolderOptions)
    parser.add_dataclass("rate of an encoded file", TargetOptions)
    given = parser.parse_args(argv)
    targets = TargetOptions(**{name: value for name, value in vars(given).items() if name in _TARGETS})
    if targets.given_targets and given.direction == "decode":
        raise InputError(f"--{next(iter(targets.given_targets))} is for encode: a file has its rate")
    if (targets.target_psnr is None) != (given.decoder is None):
        raise InputError("--target_psnr and --decoder FILE.onnx, which measures it, go together: give both or neither")
    options = RuntimeOptions(
        f"{given.direction}r",
        given.model,
        given.tables,
        given.backend,
        given.decoder,
        targets,
        overwrite=getattr(given, "overwrite", False) or not given.source.is_dir(),
    )
    convert(CONVERSIONS[given.direction], given.source, given.target, options)
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)
