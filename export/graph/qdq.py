"""Converts the graph that torch writes for a fake-quantized module to a graph that runtimes execute in int8.

torch writes a QuantizeLinear and a DequantizeLinear for every fake quantization. This module does the rest without
changing values: weights become int8 constants, biases int32 constants in the unit of the accumulator, and numbers in
sums and products uint8 constants; rows of zeros are removed from kernels; inputs and outputs become 8-bit.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codec.errors import InputError
from export.graph.onnx_file import prune

Array = NDArray[Any]


class Graph:
    """An ONNX graph, indexed by its constants and producers."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}

    def nodes(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in kinds]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str, value: Array) -> str:
        """Adds a constant of this name; returns the name."""
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        self.constants[name] = value
        return name

    def dequantized(self, name: str, value: Array, scale: Array, zero: Array, axis: int | None = None) -> str:
        """Adds an integer constant and a DequantizeLinear after it; returns the name of the real values."""
        inputs = [self.constant(f"{name}_{what}", each) for what, each in (("q", value), ("s", scale), ("z", zero))]
        attributes = {} if axis is None else {"axis": axis}
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_DequantizeLinear", **attributes)
        self.graph.node.insert(0, node)
        self.producers[node.output[0]] = self.graph.node[0]
        return f"{name}_dq"

    def zero_point(self, name: str) -> Array:
        """The zero point of a tensor that a DequantizeLinear produces."""
        return self.constants[self.producers[name].input[2]]

    def scale(self, name: str) -> Array | None:
        """The scale of a tensor, if a DequantizeLinear produces it; else None."""
        node = self.producers.get(name)
        return self.constants[node.input[1]] if node is not None and node.op_type == "DequantizeLinear" else None


def to_int8(model: onnx.ModelProto) -> None:
    """Makes all conversions of this module, in place."""
    integers = (fold_weights, without_int16, quantize_biases, quantize_numbers)
    for step in (*integers, quantize_before_rectifiers, trim_kernels, open_inputs, open_outputs):
        step(Graph(model.graph))
        prune(model.graph)


def fold_weights(graph: Graph) -> None:
    """Replaces quantized constants by their integers."""
    for node in graph.nodes("QuantizeLinear"):
        real, scale, zero = (graph.constants.get(name) for name in node.input)
        if real is None:
            continue
        assert scale is not None
        assert zero is not None
        shape = [1] * real.ndim
        if scale.ndim:
            axis = next(each.i for each in node.attribute if each.name == "axis")
            shape[axis] = -1
        limits = np.iinfo(zero.dtype)
        inverse = np.float32(1) / scale.reshape(shape)  # as in torch: dividing would round some halves differently
        integers = np.rint(real * inverse) + zero.astype(np.int32).reshape(shape if zero.ndim else [1])
        graph.constant(node.output[0], np.clip(integers, limits.min, limits.max).astype(zero.dtype))
        graph.graph.node.remove(node)


def without_int16(graph: Graph) -> None:
    """Writes int16 as uint16, plus 32768: the same values, and Qualcomm's chips run more operators on uint16."""
    for value in graph.graph.initializer:
        if value.data_type == TensorProto.INT16:
            integers = numpy_helper.to_array(value).astype(np.int32) + 32768
            value.CopyFrom(numpy_helper.from_array(integers.astype(np.uint16), value.name))


def quantize_biases(graph: Graph) -> None:
    """Converts biases to int32 with zero point 0; the scale is the input's scale times the weights' scales.

    Raises:
        InputError: a bias does not fit 32 bits, for example if it changed much in training while scales were fixed.
    """
    for node in graph.nodes("Conv", "ConvTranspose", "Gemm"):
        scales = [graph.scale(name) for name in node.input[:2]]
        if len(node.input) < 3 or scales[0] is None or scales[1] is None:
            continue
        bias = graph.constants[node.input[2]].astype(np.float64)
        unit = np.broadcast_to((scales[0] * scales[1]).astype(np.float32), bias.shape)
        integers = np.rint(bias / unit)
        if np.abs(integers).max() >= 2**31:
            raise InputError(
                f"the bias of {node.name} is too large for int32 in the unit of its weights' scale; train with a later "
                "--qat_freeze_after, which lets the scales follow"
            )
        integers = integers.astype(np.int32)
        node.input[2] = graph.dequantized(node.input[2], integers, unit, np.zeros(len(bias), np.int32), axis=0)


def quantize_numbers(graph: Graph) -> None:
    """Converts numbers that are added to or multiplied with a tensor to its type; the scale is their magnitude."""
    for node in graph.nodes("Add", "Sub", "Mul", "Div"):
        for place, name in enumerate(node.input):
            number = graph.constants.get(name)
            other = graph.scale(node.input[1 - place])
            if number is None or other is None or number.size != 1:
                continue
            magnitude = np.abs(number).astype(np.float32).reshape(())
            kind = graph.zero_point(node.input[1 - place]).dtype.type
            zero = kind(number.item() < 0)  # a negative number is 0 with zero point 1
            label = f"{node.name}_number"
            node.input[place] = graph.dequantized(
                label, np.full(number.shape, 1 - zero, kind), magnitude, np.array(zero)
            )


def quantize_before_rectifiers(graph: Graph) -> None:
    """Quantizes the input of a rectifier as its output, where that has 16 bits: rounding and rectifying commute.

    In 8 bits a rectifier is the saturation of the operation before it. In 16 bits the range is symmetric, so that it is
    an operation of its own, and Qualcomm's chips refuse one whose input is no stored tensor.
    """
    for node in graph.nodes("Relu", "Clip"):
        (reader, *others) = graph.readers(node.output[0])
        if others or reader.op_type != "QuantizeLinear" or graph.constants[reader.input[2]].dtype != np.uint16:
            continue
        if graph.scale(node.input[0]) is not None:
            continue
        real, names = node.input[0], [f"{node.name}_{what}" for what in ("quantized", "dequantized")]
        place = list(graph.graph.node).index(node)
        for kind, source, name in (("DequantizeLinear", names[0], names[1]), ("QuantizeLinear", real, names[0])):
            graph.graph.node.insert(place, helper.make_node(kind, [source, *reader.input[1:]], [name], name))
        node.input[0] = names[1]


def trim_kernels(graph: Graph) -> None:
    """Removes outer rows and columns of kernels that are all zero, and their padding.

    The odd rows of a deconvolution in two convolutions then have 2x3 taps, not 3x3.
    """
    values = {each.name: each for each in graph.graph.initializer}
    for node in graph.nodes("Conv"):
        weight = graph.producers.get(node.input[1])
        name = weight.input[0] if weight is not None else node.input[1]
        attributes = {each.name: each for each in node.attribute}
        if name not in values or set(attributes["strides"].ints) != {1} or len(graph.readers(name)) > 1:
            continue
        kernel = graph.constants[name]
        used = np.argwhere((kernel != 0).any((0, 1)))
        if not len(used):
            continue
        (top, left), (bottom, right) = used.min(0), kernel.shape[2:] - used.max(0) - 1
        kernel = kernel[:, :, top : kernel.shape[2] - bottom, left : kernel.shape[3] - right]
        cut = (top, left, bottom, right)
        pads = [pad - trimmed for pad, trimmed in zip(attributes["pads"].ints, cut, strict=True)]
        if min(pads) < 0 or not any(cut):
            continue
        attributes["pads"].ints[:] = pads
        attributes["kernel_shape"].ints[:] = kernel.shape[2:]
        values[name].CopyFrom(numpy_helper.from_array(np.array(kernel, order="C"), name))


def open_inputs(graph: Graph) -> None:
    """Makes an input 8-bit if its first operation is a quantization."""
    for value in graph.graph.input:
        readers = graph.readers(value.name)
        if [each.op_type for each in readers] == ["QuantizeLinear"]:
            for node in graph.readers(readers[0].output[0]):
                node.input[0] = value.name
            graph.graph.node.remove(readers[0])
            value.type.tensor_type.elem_type = TensorProto.UINT8


def open_outputs(graph: Graph) -> None:
    """Makes an output 8-bit if its last operation is a dequantization."""
    for value in graph.graph.output:
        last = graph.producers[value.name]
        if last.op_type != "DequantizeLinear":
            continue
        integers = last.input[0]
        real = f"{value.name}_real"  # nodes inside the graph still read the real values
        for node in graph.readers(value.name):
            node.input[list(node.input).index(value.name)] = real
        last.output[0] = real
        graph.producers[integers].output[0] = value.name
        for node in graph.readers(integers):
            node.input[0] = value.name
        value.type.tensor_type.elem_type = TensorProto.UINT8
