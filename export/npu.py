"""`python -m export.npu`: compiles a checkpoint's int8 encoder and decoder with the chips' own compilers.

Each compiler has an environment of its own (`make npu CHIP=NAME`). The command fails with exit status 2 if not all of a
part runs on a chip, because the estimates do not include the work of the CPU.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from coco224.files import check_writable
from codec.cli import POSITIVE, ArgumentParser, OptionGroup, check_output, option, run
from codec.errors import InputError
from export import options as shared
from export.chips.compilers import TARGETS, installed, require
from export.json_file import write_json

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart
    from export.graph.parts import Part

ALL = "all"
"""As --target: every chip whose compiler is installed."""


def targets(text: str) -> tuple[str, ...]:
    """`NAME,NAME,...` or `all`, for argparse."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in TARGETS and names != (ALL,):
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join((*TARGETS, ALL))})")
    return names


@dataclass(frozen=True)
class NpuOptions(OptionGroup):
    ckpt: str | None = shared.ckpt("required")
    target: tuple[str, ...] | None = option(
        None,
        "the chip, or several with commas between them; all: those whose compilers are installed",
        shown="required", parse=targets, values=lambda: (*TARGETS, ALL), metavar="LIST",
    )  # fmt: skip
    part: Literal["encoder", "decoder", "both"] = option("both", "what to compile")
    input_size: tuple[int, int] = shared.input_size()
    calib_dir: str | None = shared.calib_dir()
    a16: str | None = shared.a16()
    sram_kib: int | None = option(
        None, "Ethos-U: SRAM for feature maps", rule=POSITIVE, shown="8192 for U55, 2048 for U65 and U85"
    )
    compilers: str = shared.compilers()
    out: str | None = option(None, "where to keep the compiled files", metavar="DIR", shown="not kept")
    json: str | None = option(None, "where to write the figures", metavar="FILE", shown="none")
    replace_parts: Literal["encoder", "decoder", "all"] | None = shared.replace_parts()
    plugin: str | None = shared.plugin()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ckpt", "target"):
            if getattr(self, name) is None:
                raise InputError(f"--{name} is required; --help lists the options")
        if self.sram_kib and not any(TARGETS[each].name == "arm" for each in self.asked()):
            raise InputError(f"--sram_kib is for Ethos-U; leave it out with --target {','.join(self.target or ())}")
        if self.json:
            from coco224.dataset import files_of

            read = chain(shared.read_by(self.ckpt, self.plugin), files_of(self.calib_dir))
            check_output("json", self.json, read)
        shared.check_a16(self.a16, self.calib_dir)

    def asked(self) -> tuple[str, ...]:
        """The names of the chips."""
        if self.target == (ALL,):
            return tuple(target for each in installed(Path(self.compilers)) for target in each.targets)
        return self.target or ()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.npu", description="Compiles a checkpoint's transforms with the chips' compilers."
    )
    parser.add_dataclass("compiler", NpuOptions)
    options = NpuOptions(**vars(parser.parse_args(argv)))
    asked, environments = options.asked(), Path(options.compilers)
    if not asked:
        raise InputError(f"--target all: {environments} has no compiler; run `make npu CHIP=NAME` first")
    require(asked, environments)
    if options.out:
        check_writable("--out", Path(options.out))
    shared.require_onnx()
    from export.chips.judge import judge

    size, out = options.input_size, Path(options.out) if options.out else None
    verdicts = []
    for verdict in judge(parts_of(options), asked, environments, out, {"sram_kib": options.sram_kib}):
        print(f"{verdict.part}, {size[0]}x{size[1]}, {verdict.target} by {verdict.tool}: {verdict}", flush=True)
        verdicts.append(verdict)
    if options.json:
        write_json(options.json, [asdict(verdict) for verdict in verdicts])
    complaints = [f"{each.target}, {each.part}: {each.complaint}" for each in verdicts if each.complaint]
    if complaints:
        raise InputError(f"not all of {options.ckpt} runs on the chip: {'; '.join(complaints)}")
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def parts_of(options: NpuOptions) -> list["QuantizedPart"]:
    """The parts to compile; prints which of them stays on the host.

    Raises:
        InputError: the checkpoint cannot be quantized.
    """
    from codec.blocks import load_plugin
    from export.chips.part import QuantizedPart
    from export.graph import build
    from export.pictures import sample_picture

    assert options.ckpt
    if options.plugin:
        load_plugin(options.plugin)
    opened = build.open_for_export(Path(options.ckpt), options.replace_parts)
    asked: tuple[Part, ...] = ("encoder", "decoder") if options.part == "both" else (options.part,)
    calib_dir = Path(options.calib_dir) if options.calib_dir else None
    wanted: Part = "full" if options.part == "both" else options.part
    codec = build.in_int8(opened, wanted, calib_dir, options.input_size, options.ckpt, options.a16)
    for part, transform in (("encoder", "g_a"), ("decoder", "g_s")):
        if part in asked and not codec.is_quantized(transform):
            raise InputError(
                f"{options.ckpt} was trained without quantization of the {part}; give --calib_dir DIR with photographs "
                "for it, or compile only the other part with --part"
            )
    parts = [each for part in asked for each in build.parts_of(codec, part)]
    if "h_a" in parts and not codec.has_symbols("h_a"):  # also if the tables of z do not fit 8 bits
        parts.remove("h_a")
        print("h_a stays in float, on the host: give --calib_dir, or train with --qat_exclude_entropy false")
    if not codec.y_model.in_levels and codec.y_model.symbol_limits is None:
        latent = "y_hat" if options.part == "decoder" else "y"
        raise InputError(
            f"{options.ckpt}: the symbols of its tables do not fit -128..127, so {latent} is float, which no integer "
            "core supports; train with a larger --lambda_bpp, or at a lower quality"
        )
    x = sample_picture(*options.input_size)
    return [QuantizedPart(codec, part, x) for part in parts]


if __name__ == "__main__":
    cli()
