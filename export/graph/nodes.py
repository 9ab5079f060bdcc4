"""ONNX graphs as lists of nodes, with the shapes and constants for rules and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Shape = tuple[int, ...]
OPEN = 0
"""A dynamic size."""


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        inputs, outputs: shapes; () for a scalar, for an input that is left out, and if nothing is known.
        constants: values of the constant inputs.
        stored: types of the stored activations that it reads and writes, a rectifier after it included; empty in float.
    """

    name: str
    operator: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    attributes: dict[str, Any] = field(repr=False)
    constants: dict[int, NDArray[np.generic]] = field(repr=False)
    stored: frozenset[str] = frozenset()

    def ints(self, name: str) -> Sequence[int]:
        """A list of integers from an attribute or, in later opsets, a constant input; empty if there is none."""
        if name in self.attributes:
            return tuple(self.attributes[name])
        return tuple(self.constants[1].ravel().tolist()) if name == "axes" and 1 in self.constants else ()

    def number(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def scalar(self, place: int, default: float) -> float:
        """The value of a constant input; NaN if it has different values or is not constant."""
        if len(self.inputs) <= place or not self.text(f"input {place}", ""):
            return default
        values = np.unique(self.constants[place]) if place in self.constants else np.zeros(0)
        return float(values[0]) if len(values) == 1 else float("nan")

    def dtype(self, place: int) -> str:
        return str(self.constants[place].dtype) if place in self.constants else ""


def read(model: onnx.ModelProto) -> list[Node]:
    """The nodes of a graph in order: its inputs, as nodes with operator `Input`, then its operators."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    shapes = {each.name: _shape(each) for each in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {name: value.shape for name, value in constants.items()}
    stored = _stored(graph, constants)
    nodes = [
        Node(each.name, "Input", (), (shapes[each.name],), {}, {}) for each in graph.input if each.name not in constants
    ]
    for i, node in enumerate(graph.node):
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        attributes |= {f"input {place}": name for place, name in enumerate(node.input)}
        nodes.append(
            Node(
                node.name or f"{node.op_type}_{i}",
                node.op_type,
                tuple(shapes.get(name, ()) for name in node.input),
                tuple(shapes.get(name, ()) for name in node.output),
                attributes,
                {place: constants[name] for place, name in enumerate(node.input) if name in constants},
                frozenset(stored[name] for name in (*node.input, *node.output) if name in stored),
            )
        )
    return nodes


def _stored(graph: onnx.GraphProto, constants: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """The types of the activations that are stored, by the names of their real values."""
    stored = {}
    for node in reversed(graph.node):  # a rectifier comes after the operation that computes it too
        if node.op_type == "QuantizeLinear":
            stored[node.input[0]] = str(constants[node.input[2]].dtype)
        elif node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            stored[node.output[0]] = str(constants[node.input[2]].dtype)
        elif node.op_type in ("Relu", "Clip") and node.output[0] in stored:
            stored.setdefault(node.input[0], stored[node.output[0]])
    return stored


def macs(nodes: list[Node]) -> int:
    """Multiplications of the convolutions for one input; for transposed ones, without inserted zeros."""
    total = 0
    for node in nodes:
        if node.operator == "Conv":
            total += prod(node.outputs[0]) * prod(node.inputs[1][1:])
        elif node.operator == "ConvTranspose":
            total += prod(node.inputs[0]) * prod(node.inputs[1][1:])
    return total


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(size.dim_value if size.HasField("dim_value") else OPEN for size in value.type.tensor_type.shape.dim)
