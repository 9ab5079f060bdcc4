"""Other forms of an int8 graph, for compilers that do not take uint8 with a zero point.

`float_twin` gives the float graph and the range of each tensor: the integers of its weights and its ranges are those of
the int8 graph. `symmetric` gives a graph whose 8-bit types are all int8 with zero point 0, as TensorRT wants them.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph.onnx_file import prune
from export.graph.qdq import Graph

Range = tuple[float, float]
LOW, HIGH, STEPS = -128, 127, 255


def float_twin(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Range]]:
    """The graph without its quantizers, with dequantized weights; and what the limits of each tensor's type stand for.

    Inputs and outputs are float and keep their names.
    """
    twin = _copy(model)
    graph = Graph(twin.graph)
    _dequantize_constants(graph)
    ranges: dict[str, Range] = {}
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        limits = np.iinfo(graph.constants[node.input[2]].dtype)
        scale, zero = (graph.constants[name].astype(np.float64).item() for name in node.input[1:])
        ranges[_bypass(graph, node)] = ((limits.min - zero) * scale, (limits.max - zero) * scale)
    for value in (*twin.graph.input, *twin.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    prune(twin.graph)
    onnx.checker.check_model(twin)
    return twin, ranges


def symmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 and zero point 0 in place of uint8, and float biases.

    A range that is not symmetric grows to one that is: that of a ReLU loses one of its eight bits. Symbols lose
    nothing. Pictures and magnitudes would, so they are float at the inputs and outputs.
    """
    form = _copy(model)
    graph = Graph(form.graph)
    _dequantize_constants(graph, TensorProto.INT32)
    open_ends = {each.name: each for each in (*form.graph.input, *form.graph.output)}
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = graph.constants[node.input[2]]
        if zero.dtype != np.uint8:
            continue
        ends = [open_ends[name] for name in (*node.input, *node.output) if name in open_ends]
        if ends and zero != -LOW:
            _bypass(graph, node)
            ends[0].type.tensor_type.elem_type = TensorProto.FLOAT
            continue
        for end in ends:
            end.type.tensor_type.elem_type = TensorProto.INT8
        _make_symmetric(graph, node, int(zero))
    prune(form.graph)
    onnx.checker.check_model(form)
    return form


def _make_symmetric(graph: Graph, node: onnx.NodeProto, zero: int) -> None:
    """Gives one uint8 quantizer the smallest symmetric range that holds its own; a constant gets new integers."""
    scale = graph.constants[node.input[1]].astype(np.float64)
    wider = scale * max(zero / -LOW, (STEPS - zero) / HIGH)
    name = node.output[0]
    integers = graph.constants.get(node.input[0])
    if integers is not None:
        real = (integers.astype(np.float64) - zero) * scale
        node.input[0] = graph.constant(f"{name}_int8", np.clip(np.rint(real / wider), LOW, HIGH).astype(np.int8))
    node.input[1] = graph.constant(f"{name}_scale", wider.astype(np.float32))
    node.input[2] = graph.constant(f"{name}_zero", np.zeros((), np.int8))


def _dequantize_constants(graph: Graph, *kinds: int) -> None:
    """Makes quantized constants float, all of them or those of some types."""
    for node in graph.nodes("DequantizeLinear"):
        integers = graph.constants.get(node.input[0])
        if integers is None or (kinds and onnx.helper.np_dtype_to_tensor_dtype(integers.dtype) not in kinds):
            continue
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        scale, zero = (_along(graph.constants[name], integers, axis) for name in node.input[1:])
        graph.constant(node.output[0], ((integers.astype(np.float64) - zero) * scale).astype(np.float32))
        graph.graph.node.remove(node)


def _along(values: NDArray[np.generic], tensor: NDArray[np.generic], axis: int) -> NDArray[np.float64]:
    """Values for each channel of a tensor, or one for all, in a shape that broadcasts."""
    shape = [1] * tensor.ndim
    if values.size > 1:
        shape[axis] = -1
    return values.astype(np.float64).reshape(shape)


def _bypass(graph: Graph, node: onnx.NodeProto) -> str:
    """Removes a quantizer. Of its two tensors one stays, the graph's output if it is one of them; returns it."""
    old, kept = str(node.output[0]), str(node.input[0])
    graph.graph.node.remove(node)
    if old in {each.name for each in graph.graph.output}:
        old, kept = kept, old
    for other in graph.graph.node:
        for names in (other.input, other.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = kept
    return kept


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    return copied


def weight_scales(model: onnx.ModelProto) -> dict[str, list[float]]:
    """The scale of every output channel of the convolutions of an int8 graph.

    By the output's name, and by that of the ReLU after it, where a compiler fuses the two.
    """
    graph = Graph(model.graph)
    found = {}
    for node in graph.nodes("Conv"):
        weights = graph.producers[node.input[1]]
        channels = len(graph.constants[weights.input[0]])
        scales = np.broadcast_to(graph.constants[weights.input[1]].ravel(), channels).tolist()
        found[node.output[0]] = scales
        for reader in graph.readers(node.output[0]):
            if reader.op_type in ("Relu", "QuantizeLinear"):  # the latter where the output is the graph's
                found[reader.output[0]] = scales
    return found
