"""Intel's OpenVINO: takes the int8 ONNX file as it is, for the CPU, and for the NPU where its compiler is installed."""

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import INPUT, MODEL, Compiler, Estimate, Job, Refused
from export.cpu import openvino_settings, sums_saturate

if TYPE_CHECKING:
    from export.chips.part import QuantizedPart

DEVICES = {"openvino-cpu": "CPU", "intel-npu": "NPU"}
MOVES = (
    "Const",
    "Constant",
    "Input",
    "Output",
    "Parameter",
    "Result",
    "Reorder",
    "Reshape",
    "Transpose",
    "Concatenation",
    "Split",
    "StridedSlice",
)
"""Layers that compute nothing."""


class Intel(Compiler):
    """OpenVINO. On the CPU, its result is that of `export.runtime --backend openvino`."""

    name = "intel"
    package = "openvino"
    targets: ClassVar[tuple[str, ...]] = tuple(DEVICES)

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        (job.folder / MODEL).write_bytes(part.graph("depth_to_space").SerializeToString())
        return {}

    def compile(self, job: Job) -> str:
        import openvino

        device = DEVICES[job.target]
        settings = openvino_settings(threads=1) if device == "CPU" else {}
        try:
            self.compiled = openvino.Core().compile_model(str(job.folder / MODEL), device, settings)
        except RuntimeError as error:
            raise Refused(words(str(error))) from error
        layers = [node.get_rt_info() for node in self.compiled.get_runtime_model().get_ops()]
        kinds = [(str(each["layerType"].value), str(each["runtimePrecision"].value)) for each in layers]
        return json.dumps({"layers": kinds, "saturates": device == "CPU" and sums_saturate()})

    def figures(self, job: Job, report: str) -> Estimate:
        found = json.loads(report)
        if found["saturates"]:
            return Estimate("", {"layers in float": "all, since int8 sums saturate on this CPU, which has no VNNI"})
        layers = [(kind, precision) for kind, precision in found["layers"] if kind not in MOVES]
        in_float = Counter(kind for kind, precision in layers if precision.startswith(("f", "bf")))
        figures: dict[str, Any] = {"layers in float": f"{in_float.total()} of {len(layers)}"}
        if in_float:
            figures["in float"] = ", ".join(f"{count} {kind}" for kind, count in in_float.items())
        return Estimate("", figures)

    def simulate(self, job: Job) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.compiled(np.load(job.folder / INPUT))[0]
        return found


def words(error: str) -> str:
    """The innermost of OpenVINO's nested messages, without the folders of files."""
    lines = [line.strip() for line in error.splitlines() if line.strip() and not line.startswith("Exception from")]
    said = lines[-1] if lines else "no reason given"
    return re.sub(r'"?[^\s"]*/([^\s"/]+?)"?(?=[:\s]|$)', r"\1", said)
