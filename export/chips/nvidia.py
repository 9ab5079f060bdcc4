"""NVIDIA's TensorRT for RTX builds its engines ahead of time, without a GPU.

It wants int8 with zero point 0. It would take a uint8 file too, with nothing but a warning, and compute other values:
so it gets the symmetric form, and float where it refuses that.
"""

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from export.chips.compiler import Compiler, Estimate, Job, Refused

if TYPE_CHECKING:
    from onnx import ModelProto

    from export.chips.part import QuantizedPart

FORMS = ("symmetric", "float")
INT8 = 3
"""Of ONNX's types."""
ZERO, LARGEST = 128, 255


class Nvidia(Compiler):
    """TensorRT for RTX. It says neither in which precision a layer runs nor how fast."""

    name = "nvidia"
    package = "tensorrt-rtx"
    targets: ClassVar[tuple[str, ...]] = ("rtx-sm86", "rtx-sm89", "rtx-sm120")

    def prepare(self, part: "QuantizedPart", job: Job) -> dict[str, Any]:
        from export.chips.part import run
        from export.graph.forms import float_twin, symmetric

        model = part.graph("depth_to_space")
        forms = {"symmetric": symmetric(model), "float": float_twin(model)[0]}
        for name, form in forms.items():
            (job.folder / f"{name}.onnx").write_bytes(form.SerializeToString())
        same = in_bytes(run(forms["symmetric"], as_taken(forms["symmetric"], part.example))) == part.output
        return {"values equal in ONNX Runtime, %": round(100 * float(same.mean()), 2)}

    def compile(self, job: Job) -> str:
        complaints = {}
        for form in FORMS:
            try:
                engine = build((job.folder / f"{form}.onnx").read_bytes(), job.target)
            except Refused as error:
                complaints[form] = str(error)
                continue
            (job.folder / f"{form}.engine").write_bytes(engine)
            return json.dumps({"form": form, "bytes": len(engine), "complaints": complaints})
        raise Refused(complaints["float"])

    def figures(self, job: Job, report: str) -> Estimate:
        said = json.loads(report)
        figures: dict[str, Any] = {"form": said["form"], "engine, MB": round(said["bytes"] / 1e6, 2)}
        refused = said["complaints"].get("symmetric")
        return Estimate(f"int8 is refused ({refused}); it builds in float" if refused else "", figures)


def as_taken(form: "ModelProto", value: NDArray[np.uint8]) -> NDArray[Any]:
    """An 8-bit input as the symmetric form takes it: int8, or for pictures and magnitudes float."""
    entry = form.graph.input[0]
    if entry.type.tensor_type.elem_type == INT8:
        return (value.astype(np.int16) - ZERO).astype(np.int8)
    return value.astype(np.float32) / np.float32(LARGEST if entry.name == "x" else 1)


def in_bytes(value: NDArray[Any]) -> NDArray[np.uint8]:
    """An output of the symmetric form as that of the int8 graph."""
    real = value.astype(np.float32) + ZERO if value.dtype == np.int8 else value * np.float32(LARGEST)
    found: NDArray[np.uint8] = np.clip(np.rint(real), 0, LARGEST).astype(np.uint8)
    return found


def build(model: bytes, target: str) -> bytes:
    """The engine of an ONNX file.

    Raises:
        Refused: TensorRT does not parse it or does not build it, or it has a type that TensorRT would take for another.
    """
    import tensorrt_rtx as trt

    class Messages(trt.ILogger):
        """Keeps the errors and prints everything else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            print(severity, text)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(text)

    logger = Messages()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise Refused(parser.get_error(0).desc().strip().splitlines()[-1])
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    if any(each.dtype == trt.uint8 for each in ends):
        raise Refused("uint8 at an input or output, which it would take for int8")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.removeprefix("rtx-").upper()), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Refused(logger.errors[-1] if logger.errors else "no reason given")
    return bytes(engine)
