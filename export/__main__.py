"""`python -m export`: writes a checkpoint's encoder, decoder or both as a checked ONNX file, and its entropy tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from coco224.files import check_file
from codec.cli import BEGINS, ArgumentParser, OptionGroup, option, run
from codec.description.architecture import STRIDE
from codec.errors import InputError
from export import options as shared

if TYPE_CHECKING:
    from codec.network.codec import Codec


@dataclass(frozen=True)
class ExportOptions(OptionGroup):
    ckpt: str | None = shared.ckpt("required")
    part: Literal["full", "encoder", "decoder"] | None = option(
        None,
        "encoder: x to y, with h_a of a hyperprior beside it; decoder: y_hat to x_hat; full: both, for checks",
        shown="required",
    )
    out: str | None = option(None, "the ONNX file; the entropy tables go beside it", metavar="FILE", shown="required")
    input_size: tuple[int, int] = shared.input_size()
    dynamic: bool = option(False, "any height and width that are multiples of 16")
    opset: int | None = option(
        None,
        "ONNX opset, 13 to 17, or 21",
        rule=(lambda n: 13 <= n <= 17 or n == 21, "must be 13 to 17, or 21; below 13 has no int8 per channel"),
        shown="13; 21 with 16-bit activations",
    )
    precision: Literal["float", "int8"] = option(
        "float", "int8 uses the ranges of quantization-aware training, or calibrates on --calib_dir"
    )
    calib_dir: str | None = shared.calib_dir()
    a16: str | None = shared.a16()
    deconv: Literal["auto", "transpose", "depth_to_space", "concat"] = option(
        "auto", "form of the transposed convolutions; auto: transpose in float, concat in int8"
    )
    replace_parts: Literal["encoder", "decoder", "all"] | None = shared.replace_parts()
    plugin: str | None = shared.plugin()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ckpt", "part", "out"):
            if getattr(self, name) is None:
                raise InputError(f"--{name} is required; --help lists the options")
        if self.out and not self.out.endswith(".onnx"):
            raise InputError(f"--out {self.out}: give a file name that ends in .onnx")
        if self.calib_dir and self.precision == "float":
            raise InputError("--calib_dir needs --precision int8; add that, or leave --calib_dir out")
        shared.check_a16(self.a16, self.calib_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(prog="python -m export", description="A checkpoint's transforms as checked ONNX files.")
    parser.add_dataclass("export", ExportOptions)
    options = ExportOptions(**vars(parser.parse_args(argv)))
    shared.require_onnx()
    export(options)
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def export(options: ExportOptions) -> None:
    """Makes the graph, checks it, and writes it with its entropy tables, both or neither.

    Raises:
        InputError: the checkpoint contradicts the options, or the graph's results differ from the codec's.
        DataError: --out cannot be written.
    """
    from coco224.dataset import files_of
    from export.runtime.session import H_A_SUFFIX, TABLES_SUFFIX

    assert options.out
    for path in (Path(options.out), *(Path(options.out).with_suffix(each) for each in (TABLES_SUFFIX, H_A_SUFFIX))):
        read = chain(shared.read_by(options.ckpt, options.plugin), files_of(options.calib_dir))
        check_file("--out", path, read, BEGINS.get(path.suffix, ()))
    from codec.bitstream.tables import to_bytes
    from codec.blocks import load_plugin
    from codec.network.tables import tables_of
    from codec.quantization.phases import in_float
    from export.graph import build, check
    from export.measure import executed
    from export.pictures import sample_picture

    assert options.ckpt
    assert options.part
    if options.plugin:
        load_plugin(options.plugin)
    opened = build.open_for_export(Path(options.ckpt), options.replace_parts)
    tables = tables_of(opened)
    int8 = options.precision == "int8"
    if int8:
        calib_dir = Path(options.calib_dir) if options.calib_dir else None
        codec = build.in_int8(opened, options.part, calib_dir, options.input_size, options.ckpt, options.a16)
    else:
        codec = in_float(opened)
    deconv = options.deconv if options.deconv != "auto" else "concat" if int8 else "transpose"
    check_tiles(codec, options)
    x = sample_picture(*options.input_size)
    several = options.dynamic and min(options.input_size) > STRIDE
    sizes = [x, x[..., : STRIDE * 2], x[..., STRIDE:, :]] if several else [x]
    models, words = {}, {}
    for part in build.parts_of(codec, options.part):
        model = build.build(codec, part, deconv, x, options.opset, options.dynamic, tables.fingerprint)
        for picture in reversed(sizes):
            result = check.compare(model, codec, part, picture)
            if not result.passed:
                raise InputError(
                    f"{part} of {options.ckpt} differs in ONNX Runtime from PyTorch: {result.words}; nothing was "
                    "written"
                )
        models[part], words[part] = model, result.words
    written = build.write_all(Path(options.out), models, to_bytes(tables))
    opset = max(model.opset_import[0].version for model in models.values())
    print(f"{written[0]} (opset {opset}) and {' and '.join(map(str, written[1:]))}")
    for part, model in models.items():
        named = f"{part}: " if models.keys() - {part} else ""
        print(f"{named}ONNX Runtime against PyTorch on a photograph: {words[part]}")
        if int8:
            runs = executed(model)
            print(f"{named}{runs.int8} of {runs.convolutions} convolutions run in int8 in ONNX Runtime")
    if int8:
        for line in in_float_after_all(codec, options.part):
            print(line)
    elif opened.architecture.quantization:
        print("float: the checkpoint was trained for int8; --precision int8 keeps its quantization")


def in_float_after_all(codec: "Codec", part: str) -> list[str]:
    """Why latents of a quantized codec stay in float; a decoder has no z."""
    lines = []
    for transform, name in (("g_a", "y"), ("h_a", "z"))[: 1 if part == "decoder" else 2]:
        model = codec.entropy_models.get(transform)
        reason = model.not_int8() if model is not None else ""
        if reason and (transform == "g_a" or codec.is_quantized(transform)):
            lines.append(f"{name} stays in float: {reason}")
    return lines


def check_tiles(codec: "Codec", options: ExportOptions) -> None:
    """Checks the fixed size, in which `export.runtime` tiles larger pictures; prints if it cannot, or not exactly.

    Raises:
        InputError: a tile of this size is smaller than the receptive field.
    """
    from codec.bitstream.integer import UPSAMPLING
    from codec.network.reach import margins
    from codec.tiles import least_size
    from export.runtime.session import OLD_MARGINS

    if options.dynamic or options.part == "full":
        return
    known = margins(codec, "g_a" if options.part == "encoder" else "g_s")
    if known is None:
        print(f"the {options.part} looks at the full picture, or does not say how far: tiles are only approximate")
    elif min(options.input_size) < least_size(known) * STRIDE:
        raise InputError(
            f"--input_size {options.input_size} is too small for tiles of larger pictures: the {options.part} looks at "
            f"{least_size(known) * STRIDE} pixels; give that or more, or --dynamic"
        )
    has_h_a = options.part == "encoder" and "h_a" in codec.entropy_models
    least = least_size(margins(codec, "h_a") or OLD_MARGINS) * STRIDE * UPSAMPLING if has_h_a else 0
    if min(options.input_size) < least:
        print(
            f"warning: h_a looks at {least} pixels, so this encoder takes no picture larger than --input_size "
            f"{options.input_size}; give {least} or more, or --dynamic, if it must"
        )


if __name__ == "__main__":
    cli()
