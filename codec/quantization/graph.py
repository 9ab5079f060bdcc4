"""Inserts quantizers into a transform: one after each operation whose result an int8 runtime would store.

torch.fx traces the transform, with its blocks opened, into a graph of operations; the quantizers become nodes of this
graph. This works for every block that can be traced. The state-dict keys of the transform's own layers do not change.
"""

import copy
from typing import Any

from torch import Tensor, fx, nn

from codec.quantization.layers import WEIGHTED, QuantizedLayer, quantize_around, quantize_layer
from codec.quantization.levels import LevelQuantizer, Levels
from codec.quantization.observers import Observer
from codec.quantization.pairs import PAIRS
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring
from codec.quantization.tracing import (
    COMBINING,
    CONVOLVING,
    REARRANGING,
    SIGMOIDS,
    TRANSPOSED,
    called_module,
    constant_nodes,
    node_outputs,
    operation,
    rectifier_bound,
    trace,
)

SIGMOID_RANGE = (0.0, 255 / 256)
"""Gives a sigmoid's output the scale 1/256, which TFLite requires."""

Range = tuple[float, float]


class QuantizedTransform(fx.GraphModule):
    """A transform as a graph of operations and quantizers, next to the layers that it was traced from.

    Attributes:
        closed: by the name of a layer, why it could not be traced; inside these each convolution and linear layer has
            its own quantizers.
        widened: the conversions to 16 bits (`codec.quantization.widen`); only where there are activations of 16 bits.
    """

    closed: dict[str, str]
    widened: nn.ModuleDict

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedTransform":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, QuantizedTransform)
        copied.closed = dict(self.closed)
        for name, child in self.named_children():  # fx copies only the parts that the graph names
            setattr(copied, name, copy.deepcopy(child, memo))
        return copied


def insert_quantizers(
    transform: nn.Module,
    example: Tensor,
    switches: Switches,
    *,
    per_channel: bool,
    observer: Observer,
    input_range: Range | None,
    output_range: Range | None,
) -> QuantizedTransform:
    """The transform with quantizers in it. It shares the layers of the original, whose weights become fake-quantized.

    Args:
        transform: layers in a row, [B, C, H, W] to [B, C', H', W'].
        example: an input of any values; it shows which results are float tensors.
        per_channel: weights have a scale for each output channel.
        observer: learns the ranges of activations.
        input_range: the range of the input, which is then quantized; None: the input stays in float.
        output_range: the range of the output, which is then quantized in eval mode; None: it stays in float.
    """
    module = _trace(transform)
    inserter = _QuantizerInserter(module, example, switches, observer, per_channel)
    for node in list(module.graph.nodes):
        if node not in inserter.constant:
            inserter.quantize_parameters_of(node)
            inserter.quantize_output_of(node, input_range, output_range)
    _quantize_layers(module, switches, observer, per_channel)
    _wire(module, inserter.quantizer_of, switches)
    module.graph.lint()
    module.recompile()
    return module.train(transform.training)


def _trace(transform: nn.Module) -> QuantizedTransform:
    """The transform as a graph without quantizers."""
    graph, closed = trace(transform)
    module = QuantizedTransform(transform, graph)
    for name, child in transform.named_children():
        setattr(module, name, child)
    module.closed = closed
    return module


class _QuantizerInserter:
    """Adds quantizers to a traced graph, node by node in the graph's order.

    Attributes:
        constant: the nodes that depend on parameters alone.
        quantizer_of: for each node whose values lie on the grid of an activation quantizer, that quantizer's name.
    """

    def __init__(
        self, module: QuantizedTransform, example: Tensor, switches: Switches, observer: Observer, per_channel: bool
    ) -> None:
        self.graph, self.switches, self.observer, self.per_channel = module.graph, switches, observer, per_channel
        self.quantizers = nn.ModuleDict()
        module.quantizers = self.quantizers
        self.outputs = node_outputs(module, example)
        self.constant = constant_nodes(module.graph)
        self.last = next(node for node in module.graph.nodes if node.op == "output").all_input_nodes[0]
        self.quantizer_of: dict[fx.Node, str] = {}

    def quantize_parameters_of(self, node: fx.Node) -> None:
        """Quantizes the parameters that a functional convolution, a sum or a product reads."""
        called = operation(node)
        if called in CONVOLVING:
            weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            if isinstance(weight, fx.Node) and weight in self.constant:
                self._quantize_parameter(weight, node, int(called in TRANSPOSED) if self.per_channel else None, 0)
        elif called in COMBINING:
            for source in node.all_input_nodes:
                if source in self.constant:
                    self._quantize_parameter(source, node, None, 128)

    def quantize_output_of(self, node: fx.Node, input_range: Range | None, output_range: Range | None) -> None:
        """Quantizes the output of a node, if a runtime would store it.

        Before a rectifier there is no quantizer: a runtime computes the rectifier together with the operation before
        it, and stores the result alone.
        """
        inputs = node.all_input_nodes
        if operation(node) in REARRANGING and inputs and inputs[0] in self.quantizer_of:
            self.quantizer_of[node] = self.quantizer_of[inputs[0]]
        if node.op == "output" or not _is_float(self.outputs[node]):
            return
        if (levels := _levels_beside(node)) is not None:
            self._insert_quantizer(node, LevelQuantizer(self.switches, self.observer, levels))
        elif node is self.last:
            if output_range:
                self._quantize_output(node, output_range, only_in_eval=True)
        elif node.op == "placeholder":
            if input_range:
                self._quantize_output(node, input_range)
        elif node in self.quantizer_of:
            self._insert_after(node, self.quantizer_of[node])
        elif operation(node) in SIGMOIDS:
            self._quantize_output(node, SIGMOID_RANGE)
        elif any(rectifier_bound(user) is None for user in node.users):
            self._quantize_output(node)

    def _quantize_parameter(self, parameter: fx.Node, user: fx.Node, axis: int | None, zero_point: int) -> None:
        """Makes `user` read the parameter through a quantizer, one for all users of the parameter."""
        name = f"of_{parameter.name.strip('_')}"
        if name not in self.quantizers:
            channels = self.outputs[parameter].shape[axis or 0]
            self.quantizers[name] = WeightQuantizer(self.switches, channels, axis, zero_point)
        with self.graph.inserting_before(user):
            user.replace_input_with(parameter, self.graph.call_module(f"quantizers.{name}", (parameter,)))

    def _quantize_output(self, node: fx.Node, known_range: Range | None = None, only_in_eval: bool = False) -> None:
        """Inserts a new quantizer after a node."""
        self._insert_quantizer(node, ActivationQuantizer(self.switches, self.observer, known_range, only_in_eval))

    def _insert_quantizer(self, node: fx.Node, quantizer: ActivationQuantizer) -> None:
        name = "input" if node.op == "placeholder" else f"after_{node.name.strip('_')}"
        self.quantizers[name] = quantizer
        self._insert_after(node, f"quantizers.{name}")

    def _insert_after(self, node: fx.Node, quantizer: str) -> None:
        """Inserts a call of a quantizer after a node; all users of the node read its output."""
        with self.graph.inserting_after(node):
            quantized = self.graph.call_module(quantizer, (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
        self.quantizer_of[quantized] = quantizer


def _quantize_layers(module: QuantizedTransform, switches: Switches, observer: Observer, per_channel: bool) -> None:
    """Fake-quantizes the weights of convolutions and linear layers; in closed blocks their inputs and outputs too."""
    for layer in list(module.modules()):
        if isinstance(layer, WEIGHTED):
            quantize_layer(layer, switches, per_channel)
    for name in module.closed:
        for layer in list(module.get_submodule(name).modules()):
            if isinstance(layer, QuantizedLayer):
                quantize_around(layer, switches, observer)


def _wire(module: QuantizedTransform, quantizer_of: dict[fx.Node, str], switches: Switches) -> None:
    """Tells each layer, sum and product which quantizers are around it; sums and products become modules for this."""
    module.pairs = nn.ModuleDict()
    targets = [node.target for node in module.graph.nodes]
    for node in list(module.graph.nodes):
        wiring = _wiring(module, node, quantizer_of)
        if node.op == "call_module" and targets.count(node.target) == 1:  # a layer called twice has no one wiring
            layer = module.get_submodule(str(node.target))
            if isinstance(layer, QuantizedLayer):
                layer.wiring = wiring
        elif operation(node) in PAIRS and not node.kwargs and len(wiring.inputs) == 2 and wiring.output is not None:
            module.pairs[node.name] = PAIRS[operation(node)](switches, wiring)
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.call_module(f"pairs.{node.name}", node.args))
            module.graph.erase_node(node)


def _wiring(module: QuantizedTransform, node: fx.Node, quantizer_of: dict[fx.Node, str]) -> Wiring:
    """The quantizers around a node."""

    def quantizer(name: str) -> ActivationQuantizer:
        found = module.get_submodule(name)
        assert isinstance(found, ActivationQuantizer)
        return found

    operands = [quantizer_of.get(operand) for operand in node.args if isinstance(operand, fx.Node)]
    inputs = tuple(quantizer(name) for name in operands if name)
    output = _output_quantizer(node, quantizer_of)
    return Wiring(inputs if len(inputs) == len(operands) else (), quantizer(output) if output else None)


def _output_quantizer(node: fx.Node, quantizer_of: dict[fx.Node, str]) -> str | None:
    """The quantizer of a node's result, directly or after a rectifier; None if the result has several users."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user in quantizer_of:
        return quantizer_of[user]
    return _output_quantizer(user, quantizer_of) if rectifier_bound(user) is not None else None


def _levels_beside(node: fx.Node) -> Levels | None:
    """The `Levels` that give or take a node's result, if it is levels."""
    found = [called_module(each) for each in (node, *node.users) if operation(each) is Levels]
    return next((levels for levels in found if levels.gives_y != (operation(node) is Levels)), None)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
