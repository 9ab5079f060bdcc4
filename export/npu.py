"""`python -m export.npu`: compiles a checkpoint's int8 encoder and decoder with a chip's own compiler.

The compilers have their own environment (`make npu`). The command fails with exit status 2 if not all of a part runs on
the chip, because the estimates do not include the work of the CPU.
"""

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from codec.cli import POSITIVE, ArgumentParser, OptionGroup, option, run
from codec.errors import InputError
from export import options as shared
from export.json_file import check_json, write_json

if TYPE_CHECKING:
    from codec.network.codec import Codec
    from export.graph.parts import Part

QUALCOMM = "qualcomm-htp"
ETHOS_U_COMPILERS, QUALCOMM_COMPILERS = ("litert_torch", "ethosu"), ("onnxruntime_qnn",)


@dataclass(frozen=True)
class NpuOptions(OptionGroup):
    ckpt: str | None = option(None, "checkpoint, ours or CompressAI's .pth.tar", metavar="FILE", shown="required")
    target: Literal["ethos-u55-256", "ethos-u65-512", "ethos-u85-1024", "qualcomm-htp"] | None = option(
        None, "the chip", shown="required"
    )
    part: Literal["encoder", "decoder", "both"] = option("both", "what to compile")
    input_size: tuple[int, int] = shared.input_size()
    calib_dir: str | None = shared.calib_dir()
    sram_kib: int | None = option(
        None, "Ethos-U: SRAM for feature maps", rule=POSITIVE, shown="8192 for U55, 2048 for U65 and U85"
    )
    out: str | None = option(None, "where to keep the compiled files", metavar="DIR", shown="not kept")
    json: str | None = option(None, "where to write the figures", metavar="FILE", shown="none")
    replace_parts: Literal["encoder", "decoder", "all"] | None = shared.replace_parts()
    plugin: str | None = shared.plugin()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ckpt", "target"):
            if getattr(self, name) is None:
                raise InputError(f"--{name} is required; --help lists the options")
        if self.sram_kib and self.target == QUALCOMM:
            raise InputError(f"--sram_kib is for Ethos-U; leave it out with --target {QUALCOMM}")
        check_json(self.json)


@dataclass(frozen=True)
class Verdict:
    """A compiler's result for one part.

    Attributes:
        complaint: why not all of the part runs on the chip; empty if all of it does.
        figures: the compiler's estimates.
    """

    part: str
    target: str
    complaint: str
    figures: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m export.npu", description="Compiles a checkpoint's transforms with a chip's compiler."
    )
    parser.add_dataclass("compiler", NpuOptions)
    options = NpuOptions(**vars(parser.parse_args(argv)))
    assert options.target
    require(options.target)
    if options.out:
        try:
            Path(options.out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {options.out}: {error.strerror}; name another folder") from error
    verdicts = list(judge(options))
    if options.json:
        write_json(options.json, [asdict(verdict) for verdict in verdicts])
    complaints = [f"the {each.part}: {each.complaint}" for each in verdicts if each.complaint]
    if complaints:
        raise InputError(f"{options.target} does not run all of {options.ckpt}: {'; '.join(complaints)}")
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def require(target: str) -> None:
    """Raises InputError if the target's compiler is not in this environment."""
    compilers = QUALCOMM_COMPILERS if target == QUALCOMM else ETHOS_U_COMPILERS
    missing = [name for name in compilers if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--target {target}: its compiler ({', '.join(missing)}) is not in this environment; run `make npu`, then "
            f".venv-npu/bin/python -m export.npu --target {target} ..."
        )


def judge(options: NpuOptions) -> Iterator[Verdict]:
    """Compiles the parts and prints the results, one after the other.

    Raises:
        InputError: the checkpoint cannot be quantized or converted.
    """
    from codec.blocks import load_plugin
    from export.graph import build

    assert options.ckpt
    if options.plugin:
        load_plugin(options.plugin)
    opened = build.open_for_export(Path(options.ckpt), options.replace_parts)
    asked: tuple[Part, ...] = ("encoder", "decoder") if options.part == "both" else (options.part,)
    calib_dir = Path(options.calib_dir) if options.calib_dir else None
    wanted: Part = "full" if options.part == "both" else options.part
    codec = build.in_int8(opened, wanted, calib_dir, options.input_size, options.ckpt)
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
    for part in parts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(options.out or scratch, part)
            folder.mkdir(parents=True, exist_ok=True)
            compiler = qualcomm if options.target == QUALCOMM else ethos_u
            verdict = compiler(codec, part, options, folder)
        print(f"{part}, {options.input_size[0]}x{options.input_size[1]}, {options.target}: {_words(verdict)}")
        yield verdict


def ethos_u(codec: "Codec", part: "Part", options: NpuOptions, folder: Path) -> Verdict:
    """Converts the part with LiteRT, then compiles it with Vela."""
    from export.chips.litert import to_tflite
    from export.chips.vela import CORES, compile_model
    from export.graph.parts import exportable
    from export.pictures import sample_picture

    assert options.target
    core = CORES[options.target]
    if options.sram_kib:
        core = replace(core, sram=options.sram_kib * 1024)
    model = folder / f"{part}.tflite"
    model.write_bytes(to_tflite(exportable(codec, part, "concat", sample_picture(*options.input_size))))
    best = compile_model(model, core, folder / options.target)
    complaint = ""
    if best.cpu_operators:
        complaint = f"{len(best.cpu_operators)} operators are left for the CPU: {', '.join(best.cpu_operators)}"
    elif core.only_sram and best.sram_kib * 1024 > core.sram:
        complaint = f"it needs {best.sram_kib:.0f} KiB of SRAM, and the chip has {core.sram // 1024} KiB"
    figures = {
        "ms": round(best.milliseconds, 2),
        "CPU operators": len(best.cpu_operators),
        "GMAC": round(best.macs / 1e9, 2),
        "SRAM, KiB": round(best.sram_kib),
        "DRAM, KiB": round(best.dram_kib),
        "strategy": best.strategy,
        "system": f"{core.system}, {core.memory}, {core.sram // 1024} KiB",
    }
    return Verdict(part, options.target, complaint, figures)


def qualcomm(codec: "Codec", part: "Part", options: NpuOptions, folder: Path) -> Verdict:
    """Compiles the int8 ONNX graph with ONNX Runtime's QNN provider."""
    import onnx

    from export.chips.qualcomm import compile_model
    from export.graph import build
    from export.graph.check import grid
    from export.graph.parts import exportable
    from export.pictures import sample_picture

    x = sample_picture(*options.input_size)
    model = build.build(codec, part, "depth_to_space", x)
    onnx.save(model, folder / f"{part}.onnx")
    ready = exportable(codec, part, "depth_to_space", x)
    scale, zero = grid(ready.inputs[0])
    compiled = compile_model(model, (ready.example / scale + zero).round().byte().numpy())
    figures = {"largest difference to the CPU, steps": compiled.largest, "mean": round(compiled.mean, 4)}
    return Verdict(part, QUALCOMM, compiled.reason, figures if compiled.whole else {})


def _words(verdict: Verdict) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in verdict.figures.items())
    return " | ".join(filter(None, ["NOT all on the chip" if verdict.complaint else "all on the chip", figures]))


if __name__ == "__main__":
    cli()
