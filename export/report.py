"""`python -m export.report`: chips that support a codec's graphs, operators in int8, latency, and quality in int8.

A checkpoint gives the complete report; ONNX files give the sections that need no checkpoint.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from coco224.errors import counted, first_line, printable
from codec.cli import ArgumentParser, OptionGroup, at_least, check_output, option, run
from codec.errors import InputError, no_file
from export import options as shared
from export.json_file import write_json

if TYPE_CHECKING:
    import onnx

    from codec.network.codec import Codec
    from export.chips.operators import Family, Finding
    from export.graph.parts import Part

PARTS: tuple["Part", ...] = ("encoder", "h_a", "decoder")
"""The parts of a codec in this order; only one with a hyperprior has h_a."""
MOST_VALUES = 2**28
"""Largest input of a file's graph: 1 GB in float."""
INT8 = "int8"
"""Name of the graphs whose transforms are in int8."""


@dataclass(frozen=True)
class ReportOptions(OptionGroup):
    ckpt: str | None = shared.ckpt("none")
    images: str | None = option(None, "pictures to measure the quality in int8", metavar="PATH", shown="not measured")
    compilers: str = shared.compilers()
    calib_dir: str | None = shared.calib_dir()
    a16: str | None = shared.a16()
    input_size: tuple[int, int] = shared.input_size()
    threads: int = option(1, "threads of ONNX Runtime for latencies", rule=at_least(1))
    rounds: int = option(10, "number of inferences for the median latency", rule=at_least(1))
    json: str | None = option(None, "where to write the figures", metavar="FILE", shown="none")
    replace_parts: Literal["encoder", "decoder", "all"] | None = shared.replace_parts()
    plugin: str | None = shared.plugin()

    def __post_init__(self) -> None:
        super().__post_init__()
        shared.check_a16(self.a16, self.calib_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(prog="python -m export.report", description="Which chips support a codec's graphs.")
    parser.add_dataclass("report", ReportOptions)
    parser.add_argument(
        "--onnx", nargs="+", type=Path, default=[], metavar="FILE", help="ONNX files, instead of --ckpt [none]"
    )
    given = vars(parser.parse_args(argv))
    files = given.pop("onnx")
    options = ReportOptions(**given)
    if bool(files) == bool(options.ckpt):
        raise InputError(
            "give either --ckpt FILE (complete report) or --onnx FILE ... (report without the codec's quality)"
        )
    only_with_ckpt = ("images", "calib_dir", "a16", "replace_parts", "plugin")
    if files and (useless := [f"--{name}" for name in only_with_ckpt if getattr(options, name)]):
        raise InputError(f"{' and '.join(useless)} need --ckpt: the files of --onnx stay as they are; leave them out")
    if options.json:
        from coco224.dataset import files_of

        pictures = chain(files_of(options.images), files_of(options.calib_dir))
        read = chain(files, shared.read_by(options.ckpt, options.plugin), pictures)
        check_output("json", options.json, read)
    shared.require_onnx()
    report = of_checkpoint(options) if options.ckpt else of_files(files, options)
    print(markdown(report))
    if options.json:
        write_json(options.json, report)
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def of_files(files: Iterable[Path], options: ReportOptions) -> dict[str, Any]:
    """The sections that need only ONNX files; every family's rules are applied to the unchanged files."""
    from export.chips.operators import FAMILIES

    models = {str(file): open_graph(file) for file in files}
    try:
        return {
            "families": [of_family(family, models, "as given") for family in FAMILIES],
            "graphs": of_graphs(models, options),
        }
    except Exception as error:  # a stranger's graph may break any rule; ONNX Runtime's exceptions have no common class
        raise InputError(
            f"--onnx {' '.join(models)}: it cannot be reported ({first_line(error)}); give files like those of python "
            "-m export"
        ) from error


def open_graph(file: Path) -> "onnx.ModelProto":
    """The model of a file, with one input of a size that can be timed.

    Raises:
        InputError: it is no such model.
    """
    import onnx

    if not file.is_file():
        raise InputError(f"--onnx {file}: {no_file(file)}; give the .onnx file")
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, onnx's own and more
        raise InputError(f"--onnx {file}: no ONNX model ({first_line(error)})") from error
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    types = [each.type.tensor_type.elem_type for each in inputs]
    if len(inputs) != 1 or types[0] not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8):
        found = ", ".join(onnx.TensorProto.DataType.Name(each) for each in types) or "none"
        raise InputError(f"--onnx {file}: its inputs are {found}; a graph that is timed takes one FLOAT or UINT8")
    sizes = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim]
    if math.prod(sizes) > MOST_VALUES:
        raise InputError(f"--onnx {file} takes {sizes}, more than {MOST_VALUES:,} values; export it for a smaller size")
    return model


def of_checkpoint(options: ReportOptions) -> dict[str, Any]:
    """All sections; every family's rules are applied to the graphs in the form that is best for it.

    Raises:
        InputError: no part of the checkpoint can be converted to int8, or it contradicts the options.
    """
    from codec.blocks import load_plugin
    from codec.description.architecture import Architecture
    from codec.network.architectures import new_codec
    from codec.quantization.phases import in_float
    from export.chips.judge import ask_installed
    from export.chips.operators import FAMILIES
    from export.graph import build
    from export.measure import in_onnx, quality
    from export.pictures import sample_picture

    assert options.ckpt
    if options.plugin:
        load_plugin(options.plugin)
    opened = build.open_for_export(Path(options.ckpt), options.replace_parts)
    floats = in_float(opened)
    calib_dir = Path(options.calib_dir) if options.calib_dir else None
    int8 = build.in_int8(opened, "full", calib_dir, options.input_size, options.ckpt, options.a16)
    parts: tuple[Part, ...] = (*build.parts_of(opened, "encoder"), "decoder")
    quantized = [part for part in parts if int8.is_quantized({"encoder": "g_a", "decoder": "g_s"}.get(part, part))]
    original = new_codec(Architecture(opened.N, opened.M, arch=opened.arch)).eval()
    x = sample_picture(*options.input_size)

    @cache  # some families take the same form
    def graphs(codec: "Codec", deconv: Any, dynamic: bool = False) -> dict["Part", "onnx.ModelProto"]:
        return {part: build.build(codec, part, deconv, x, dynamic=dynamic) for part in parts}

    families = []
    for family in FAMILIES:
        precision = precisions(quantized, parts) if family.int8 else "float"
        models = graphs(int8 if family.int8 else floats, family.deconv)
        families.append(
            of_family(
                family, {str(part): model for part, model in models.items()}, f"{precision}, --deconv {family.deconv}"
            )
        )
    timed: dict[str, dict[Part, onnx.ModelProto]] = {
        "GDN original, float": graphs(original, "transpose"),
        "float": graphs(floats, "transpose"),
        INT8: {part: model for part, model in graphs(int8, "concat").items() if part in quantized},
    }
    by_part = {f"{part}, {name}": models[part] for part in parts for name, models in timed.items() if part in models}
    report: dict[str, Any] = {"checkpoint": options.ckpt, "families": families, "graphs": of_graphs(by_part, options)}
    report["compilers"] = [asdict(each) for each in ask_installed(int8, quantized, x, Path(options.compilers))]
    if options.images:
        shipped = in_onnx(int8, graphs(int8, "concat", dynamic=True))
        codecs = {"float": floats, "fake-quantized": int8, "ONNX int8": shipped}
        report["quality"] = quality(codecs, Path(options.images))
    return report


def precisions(quantized: Collection["Part"], parts: Sequence["Part"]) -> str:
    """The precision of every part in words, if those `quantized` are in int8."""
    words = [f"{part} in {'int8' if part in quantized else 'float'}" for part in parts]
    return INT8 if len(quantized) == len(parts) else ", ".join(words)


def of_family(family: "Family", models: Mapping[str, "onnx.ModelProto"], form: str) -> dict[str, Any]:
    """A family's result for graphs: counts, and a row for each kind of node that it does not support."""
    from export.chips.operators import findings
    from export.graph.nodes import read

    nodes = {name: read(model) for name, model in models.items()}
    found = {name: findings(each, family) for name, each in nodes.items()}
    flat = [finding for each in found.values() for finding in each]
    return {
        "family": family.name,
        "file": form,
        "nodes": sum(node.operator != "Input" for each in nodes.values() for node in each),
        "not taken": sum(finding.stated for finding in flat),
        "not stated": sum(not finding.stated for finding in flat),
        "findings": [row for name, each in found.items() for row in grouped(name, each)],
    }


def grouped(graph: str, found: Sequence["Finding"]) -> list[dict[str, Any]]:
    """One row for all nodes with the same operator and reason."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for each in found:
        kinds.setdefault((each.operator, each.reason, each.remedy), []).append(each.node)
    return [
        {"graph": graph, "operator": operator, "nodes": nodes, "reason": reason, "remedy": remedy}
        for (operator, reason, remedy), nodes in kinds.items()
    ]


def of_graphs(models: Mapping[str, "onnx.ModelProto"], options: ReportOptions) -> list[dict[str, Any]]:
    """For each graph its size, multiplications, operators in int8 and, if its shape is fixed, its latency."""
    from export.graph.nodes import macs, read
    from export.measure import executed, latencies

    nodes = {name: read(model) for name, model in models.items()}
    fixed = {name: all(min(each.outputs[0]) > 0 for each in nodes[name] if each.operator == "Input") for name in models}
    times = latencies({name: model for name, model in models.items() if fixed[name]}, options.threads, options.rounds)
    openvino = {name: model for name, model in models.items() if fixed[name] and find_spec("openvino")}
    others = latencies(openvino, options.threads, options.rounds, "openvino")
    rows = []
    for name, model in models.items():
        row = {
            "graph": name,
            "kB": round(model.ByteSize() / 1e3, 1),
            "ms": round(times[name], 2) if fixed[name] else None,
        }
        row |= {"OpenVINO, ms": round(others[name], 2)} if name in others else {}
        rows.append(row | {"GMAC": macs(nodes[name]) / 1e9 if fixed[name] else None} | asdict(executed(model)))
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    from export.chips.judge import in_words

    lines = ["## Chips", "", *table(report["families"], ("family", "file", "nodes", "not taken", "not stated"))]
    rows = [
        {**row, "family": each["family"], "operator": f"{len(row['nodes'])} {row['operator']}"}
        for each in report["families"]
        for row in each["findings"]
    ]
    if rows:
        lines += ["", *table(rows, ("family", "graph", "operator", "reason", "remedy"))]
    if report.get("compilers"):
        lines += ["", "## Compilers that are installed", ""]
        answers = [
            {**each, "figures": ", ".join(f"{name} {value}" for name, value in each["figures"].items())}
            | {"on the chip": each["complaint"] or "all", "simulated": in_words(each["values"], each["difference"])}
            for each in report["compilers"]
        ]
        lines += table(answers, ("target", "tool", "part", "on the chip", "figures", "simulated"))
    lines += ["", "## ONNX Runtime on this CPU", ""]
    graphs = [
        {**row, "GMAC": _number(row["GMAC"], 3), "ms": _number(row["ms"], 2), "in float": _counted(row["in_float"])}
        | {"int8 convolutions": f"{row['int8']} of {row['convolutions']}"}
        for row in report["graphs"]
    ]
    openvino = ("OpenVINO, ms",) if all("OpenVINO, ms" in row for row in graphs) else ()
    lines += table(graphs, ("graph", "kB", "GMAC", "ms", *openvino, "int8 convolutions", "in float"))
    ratios = speed(report["graphs"])
    lines += ["", *ratios] if ratios else []
    if "quality" in report:
        lines += ["", "## Pictures, through files", ""]
        names = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM", "bpp": "bits per pixel"}
        rows = [
            {"codec": codec} | {words: _number(figures.get(name), 4) for name, words in names.items()}
            for codec, figures in report["quality"].items()
        ]
        lines += table(rows, ("codec", *names.values()))
    return "\n".join(lines)


def speed(graphs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The speed of all parts together, relative to the GDN original, if that was timed.

    For a transform that is not in int8, the time in float is used.
    """
    times: dict[str, dict[Part, float]] = {}
    for row in graphs:
        part, _, name = row["graph"].partition(", ")
        if part in PARTS:  # the name of a file's graph is its path
            times.setdefault(name, {})[part] = row["ms"]
    of_original = times.pop("GDN original, float", {})
    original, parts = sum(of_original.values()), list(of_original)
    together = f"{', '.join(parts[:-1]).capitalize()} and {parts[-1]}" if parts else ""
    cores = len(os.sched_getaffinity(0))
    return [
        f"{together} together, {precisions(own, parts) if name == INT8 else name}: "
        f"{original / sum((times['float'] | own).values()):.2f} times as fast as the GDN original in float "
        f"(medians, in turn, on a machine with {counted(cores, 'core')})."
        for name, own in times.items()
        if original
    ]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(printable(f"| {' | '.join(str(row[column]) for column in columns)} |") for row in rows),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _counted(nodes: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in nodes).items()) or "nothing"


if __name__ == "__main__":
    cli()
