"""Sophgo's TPU-MLIR: compiles a float twin of the int8 graph, and has a C model of each chip.

It does not read QuantizeLinear, so it quantizes the twin anew. With a table of our ranges and of our weights' scales it
finds our integers again; only a tensor whose range is neither symmetric nor without negative values gets another scale.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import INPUT, Compiler, Estimate, Job, Refused, left_for_the_cpu
from export.chips.lifetime import end_with

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

TWIN, TABLE, NUMBERS = "twin.onnx", "part.table", "numbers.json"
LEVELS, UINT16 = 255, 4
"""The steps of 8 bits; the number of a type in ONNX."""
TOOLS = Path(sys.executable).parent


class Sophgo(Compiler):
    """tpu-mlir. Its milliseconds are those of the cycles that it schedules; its C model computes like the chip."""

    name = "sophgo"
    package = "tpu-mlir"
    targets: ClassVar[tuple[str, ...]] = ("bm1688", "bm1684x", "cv184x")

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        from export.graph.forms import float_twin, weight_scales

        model = part.graph("depth_to_space")
        twin, ranges = float_twin(model)
        (job.folder / TWIN).write_bytes(twin.SerializeToString())
        names = {"input": twin.graph.input[0].name, "output": twin.graph.output[0].name}
        wide = any(each.data_type == UINT16 for each in model.graph.initializer)
        numbers = names | {"ranges": ranges, "scales": weight_scales(model), "wide": wide}
        (job.folder / NUMBERS).write_text(json.dumps(numbers))
        return {}

    def compile(self, job: Job) -> str:
        numbers = json.loads((job.folder / NUMBERS).read_text())
        if numbers["wide"]:
            raise Refused("its calibration table has no 16-bit activations: it would compute them in 8 bits")
        shape = json.dumps(list(np.load(job.folder / INPUT, mmap_mode="r").shape))
        graph = ("--model_name", "part", "--model_def", TWIN, "--input_shapes", f"[{shape}]", "--mlir", "part.mlir")
        tool(job, "model_transform", *graph)
        names = re.findall(r'loc\("([^"]+)"\)', (job.folder / "part.mlir").read_text())
        (job.folder / TABLE).write_text(table(dict.fromkeys(names), numbers["ranges"], numbers["scales"]))
        quantized = ("--quantize", "INT8", "--calibration_table", TABLE, "--quant_input", "--quant_output")
        files = ("--mlir", "part.mlir", "--model", "part.bmodel", "--skip_validation")
        tool(job, "model_deploy", "--chip", job.target, *quantized, *files)
        profiles = [file.read_text() for file in sorted(job.folder.glob("compiler_profile_*.txt"))]
        layers = (job.folder / f"part_{job.target}_int8_sym_tpu.mlir").read_text()
        return "\n".join([*profiles, *re.findall(r'^ *%\d+ = "tpu\..*', layers, re.MULTILINE)])

    def figures(self, job: Job, report: str) -> Estimate:
        times = re.findall(r"runtime: ([\d.]+)ms", report)
        cycles = re.findall(r"^TCYC : (\d+)", report, re.MULTILINE)
        moved = re.findall(r"\b(?:S2L|L2S|S2S):(\d+)", report)
        layers = re.findall(r'"tpu\.(\w+)".*-> tensor<(\S+)', report)
        computing = [(kind, element) for kind, element in layers if kind != "Cast"]
        if not times or not computing:
            raise Refused("it reports no time")
        left = [kind for kind, _ in computing if kind == "GenericCpu"]
        in_float = [kind for kind, element in computing if "quant.uniform" not in element]
        figures = {
            "ms": round(sum(map(float, times)), 3),
            "Mcycles": round(sum(map(int, cycles)) / 1e6, 2),
            "MB moved": round(sum(map(int, moved)) / 1e6, 1),
            "CPU operators": len(left),
            "layers in float": f"{len(in_float)} of {len(computing)}",
        }
        return Estimate(left_for_the_cpu(len(left)) if left else "", figures)

    def simulate(self, job: Job) -> NDArray[np.uint8]:
        numbers = json.loads((job.folder / NUMBERS).read_text())
        scale, zero = grid(numbers["ranges"][numbers["input"]])
        real = (np.load(job.folder / INPUT).astype(np.float64) - zero) * scale
        np.savez(job.folder / "in.npz", **{numbers["input"]: real.astype(np.float32)})
        tool(job, "model_runner", "--input", "in.npz", "--model", "part.bmodel", "--output", "out.npz")
        with np.load(job.folder / "out.npz") as outputs:
            (name,) = outputs.files
            scale, zero = grid(numbers["ranges"][numbers["output"]])
            found: NDArray[np.uint8] = np.clip(np.rint(outputs[name] / scale + zero), 0, LEVELS).astype(np.uint8)
        return found


def tool(job: Job, name: str, *words: str) -> None:
    """Runs one of its programs in the job's folder; its output goes to the log.

    Raises:
        Refused: it fails.
    """
    done = subprocess.run(
        [TOOLS / name, *words], cwd=job.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, preexec_fn=partial(end_with, os.getpid()),
    )  # fmt: skip
    print(done.stdout)
    if done.returncode:
        lines = [
            line for line in done.stdout.splitlines() if re.search(r"error|assert|unreachable", line, re.IGNORECASE)
        ]
        raise Refused(f"{name}: {(lines or done.stdout.strip().splitlines() or ['no reason given'])[-1]}")


def table(layers: Iterable[str], ranges: Mapping[str, tuple[float, float]], scales: Mapping[str, list[float]]) -> str:
    """Its calibration table: threshold and range of each tensor, then the scales of each layer's weights.

    A layer has the name of its output tensor and its operator.
    """
    lines, weights = ["# op_name    threshold    min    max"], ["#weight_scale"]
    for layer in layers:
        tensor = longest(layer, ranges)
        if tensor:
            low, high = ranges[tensor]
            # 127 steps for a signed tensor: of symbols, which begin at -128, the scale stays 1.
            threshold = high if low >= 0 else max(-low * 127 / 128, high)
            lines.append(f"{layer} {threshold:.9g} {low:.9g} {high:.9g}")
        tensor = longest(layer, scales)
        if tensor:
            weights.append(
                " ".join([f"{layer}_weight", str(len(scales[tensor])), *(f"{s:.12g}" for s in scales[tensor])])
            )
    return "\n".join([*lines, *weights, ""])


def longest(layer: str, tensors: Iterable[str]) -> str | None:
    """The tensor of which the layer has the name."""
    return max((name for name in tensors if layer == name or layer.startswith(f"{name}_")), key=len, default=None)


def grid(limits: tuple[float, float]) -> tuple[float, int]:
    """Scale and zero point of a uint8 range."""
    scale = (limits[1] - limits[0]) / LEVELS
    return scale, round(-limits[0] / scale)
