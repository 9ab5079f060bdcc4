"""Traces a transform with torch.fx into a graph of operations, and tells what the operations of the graph are."""

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from coco224.errors import first_line
from codec.compressai import GDN
from codec.errors import out_of_memory
from codec.quantization.layers import WEIGHTED
from codec.quantization.levels import Levels

REARRANGING = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.MaxPool2d),
    *(operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, F.dropout, F.pixel_shuffle, F.pixel_unshuffle, F.max_pool2d),
    *("flatten", "reshape", "view", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "chunk", "split"),
)  # fmt: skip
"""Operations whose output holds only values of their input: both share one quantizer."""

COMBINING = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.cat),
    *("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "maximum", "minimum"),
)  # fmt: skip
"""Operations of two activations; a parameter in the place of one of them is quantized like an activation."""

TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d)
CONVOLVING = (F.conv1d, F.conv2d, *TRANSPOSED, F.linear)
CLAMPS = (torch.clamp, torch.clip, F.hardtanh, "clamp", "clip", "clamp_")
RELUS = (nn.ReLU, torch.relu, F.relu, "relu", "relu_")
RELU6S = (nn.ReLU6, F.relu6)
SIGMOIDS = (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")


class Tracer(fx.Tracer):
    """Opens blocks down to torch's own layers, GDN, `Levels` and classes derived from convolutions or linear layers."""

    def __init__(self, closed: list[nn.Module]) -> None:
        """`closed`: modules that stay one node each."""
        super().__init__()
        self.closed = closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*WEIGHTED, GDN, Levels)) or any(m is closed for closed in self.closed):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def trace(transform: nn.Module) -> tuple[fx.Graph, dict[str, str]]:
    """The graph of a transform, and by name why a layer of it cannot be traced: each of these is one node."""
    graph, closed = _graph_of_both_modes(transform), {}
    if isinstance(graph, str):
        graphs = {name: _graph_of_both_modes(nn.Sequential(layer)) for name, layer in transform.named_children()}
        closed = {name: reason for name, reason in graphs.items() if isinstance(reason, str)}
        graph = Tracer([transform.get_submodule(name) for name in closed]).trace(transform)
    return graph, closed


def _graph_of_both_modes(module: nn.Module) -> fx.Graph | str:
    """The graph of a module in training and in evaluation mode; or why there is none."""
    with _modes_kept(module):
        try:
            graphs = [Tracer([]).trace(module.train(mode)) for mode in (True, False)]
            codes = {graph.python_code("self").src for graph in graphs}
        except Exception as error:  # anything that a user's forward does and a graph cannot
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {first_line(error)}"
    return graphs[0] if len(codes) == 1 else "training and evaluation mode differ"


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    """Gives every part of a module its mode, training or evaluation, back."""
    modes = {child: child.training for child in module.modules()}
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the output of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.outputs: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.outputs[n] = super().run_node(n)
        return self.outputs[n]


@torch.no_grad()
def node_outputs(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, Any]:
    """The output of each node for an example input, in eval mode."""
    with _modes_kept(module):
        recorder = _Recorder(module.eval())
        recorder.run(example)
    return recorder.outputs


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the input: parameters, and what functions compute from parameters alone."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("get_attr", "call_function", "call_method") and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    return constant


def operation(node: fx.Node) -> Any:
    """What a node calls: a function, the name of a method, or the class of a module; None if it calls nothing."""
    if node.op != "call_module":
        return node.target if node.op in ("call_function", "call_method") else None
    return type(called_module(node))


def rectifier_bound(node: fx.Node) -> float | None:
    """The upper bound of a rectifier: infinity for a ReLU, 6 for a ReLU6, that of a clamp from 0; else None."""
    called = operation(node)
    if called in RELU6S:
        return 6.0
    if called in RELUS:
        return math.inf
    if called is nn.Hardtanh:
        module = called_module(node)
        low, high = module.min_val, module.max_val
    elif called in CLAMPS:
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        low, high = (bounds.get(name, bounds.get(f"{name}_val")) for name in ("min", "max"))
    else:
        return None
    high = math.inf if high is None else high
    return float(high) if low == 0 and isinstance(high, int | float) else None


def called_module(node: fx.Node) -> Any:
    """The module that a node calls."""
    return node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
