"""Converts torch modules to ONNX graphs of a given opset, and simplifies and checks them."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.onnx import symbolic_helper, symbolic_opset13

WIDE_OPSET = 21
"""The first opset with 16 bits in QuantizeLinear and DequantizeLinear."""
_NEWEST, _IR_VERSION = 20, 10
"""torch's TorchScript exporter writes opsets up to 20. 21 adds types to operators of 20, and needs this IR version."""


@symbolic_helper.parse_args("v", "v", "v", "i", "i")
def _quantized(g: Any, x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    """fake_quantize_per_tensor_affine, as torch writes it, and to int16, which torch refuses."""
    if low >= -128:
        return symbolic_opset13.fake_quantize_per_tensor_affine(g, x, scale, zero_point, low, high)
    zero = g.op("Constant", value_t=torch.tensor(0, dtype=torch.int16))
    real = g.op("Cast", scale, to_i=TensorProto.FLOAT)
    return g.op("DequantizeLinear", g.op("QuantizeLinear", x, real, zero), real, zero)


torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
    "aten::fake_quantize_per_tensor_affine", _quantized, _NEWEST
)


def to_onnx(
    module: nn.Module, example: Tensor, inputs: Sequence[str], outputs: Sequence[str], opset: int, dynamic: bool
) -> onnx.ModelProto:
    """Traces the module with torch's TorchScript exporter, the only one that writes any requested opset.

    Args:
        example: [1, C, H, W]. The graph has its shape or, with `dynamic`, any H and W.

    Raises:
        RuntimeError: the graph is not valid ONNX of this opset.
    """
    axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in (*inputs, *outputs)} if dynamic else None
    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "traced.onnx")
        # torch warns that this exporter will be removed; but the dynamo exporter always writes opset 18.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            module, (example,), file, input_names=list(inputs), output_names=list(outputs),
            opset_version=min(opset, _NEWEST), dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
        model = onnx.load(file)
    if opset > _NEWEST:
        (written,) = model.opset_import
        written.version, model.ir_version = opset, _IR_VERSION
    tidy(model.graph)
    return model


def check(model: onnx.ModelProto, opset: int) -> None:
    """Raises RuntimeError or onnx.checker.ValidationError if the graph is not valid ONNX of this opset."""
    onnx.checker.check_model(model, full_check=True)
    written = {each.domain: each.version for each in model.opset_import}
    if written != {"": opset}:
        raise RuntimeError(f"opset {opset} was asked for and the exporter wrote {written}")


def tidy(graph: onnx.GraphProto) -> None:
    """Converts Constant nodes, and Identity nodes that share equal weights, to initializers."""
    constants = {each.name: each for each in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Constant":
            value = onnx.TensorProto()
            value.CopyFrom(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in constants:
            value = onnx.TensorProto()
            value.CopyFrom(constants[node.input[0]])
        else:
            continue
        value.name = node.output[0]
        constants[value.name] = graph.initializer.add()
        constants[value.name].CopyFrom(value)
        graph.node.remove(node)
    prune(graph)


def prune(graph: onnx.GraphProto) -> None:
    """Removes nodes and initializers that no output needs."""
    needed = {each.name for each in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for value in list(graph.initializer):
        if value.name not in needed:
            graph.initializer.remove(value)
