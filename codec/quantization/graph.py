"""Where quantizers go: after every operation of a transform whose result an int8 runtime would store.

A transform is traced by torch.fx into a graph of its layers' operations, blocks opened, and the quantizers become nodes
of that graph: so it works for any block that can be traced. Names in the state dict stay as they were.
"""

import copy
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from compressai.layers import GDN
from torch import Tensor, fx, nn

from codec.quantization.layers import WEIGHTED, QuantizedLayer, quantize_around, quantize_layer
from codec.quantization.pairs import PAIRS
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring

REARRANGING = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.MaxPool2d),
    *(operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, F.dropout, F.pixel_shuffle, F.pixel_unshuffle, F.max_pool2d),
    *("flatten", "reshape", "view", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "chunk", "split"),
)  # fmt: skip
"""These give values that they were given: their result goes through the quantizer of their input."""

COMBINING = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.cat),
    *("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "maximum", "minimum"),
)  # fmt: skip
"""A parameter that meets activations in one of these is quantized as they are."""

CONVOLVING = (F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d, F.linear)
CLAMPS = (torch.clamp, torch.clip, F.hardtanh, "clamp", "clip", "clamp_")
RELUS = (nn.ReLU, torch.relu, F.relu, "relu", "relu_")
SIXES = (nn.ReLU6, F.relu6)
SIGMOIDS = (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")

BELOW_ONE = 255 / 256
"""A sigmoid's scale is 1/256, the one that TFLite asks for."""


class QuantizedTransform(fx.GraphModule):
    """A transform as a graph of operations and quantizers, beside the layers that it was traced from.

    Attributes:
        closed: names of the layers that could not be traced; in these each convolution and linear layer has its own
            quantizers.
    """

    closed: list[str]

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedTransform":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, QuantizedTransform)
        copied.closed = list(self.closed)
        for name, child in self.named_children():  # whole: a graph copies only what it names
            setattr(copied, name, copy.deepcopy(child, memo))
        return copied


def insert_quantizers(
    transform: nn.Module,
    example: Tensor,
    switches: Switches,
    *,
    per_channel: bool,
    observer: str,
    input_range: tuple[float, float] | None,
    output_range: tuple[float, float] | None,
) -> QuantizedTransform:
    """The transform with quantizers in it; its layers are shared, and their weights become fake-quantized.

    Args:
        transform: layers in a row, [B, C, H, W] to [B, C', H', W'].
        example: an input of any values, to see which results are tensors.
        per_channel: weights have a scale for each output channel.
        observer: of activations, "ema" or "minmax".
        input_range: of the input, which is quantized so; None: it is left alone.
        output_range: of the output, which is quantized so in eval mode; None: it is left alone.
    """
    closed = [layer for layer in transform.children() if not _is_open(layer)]
    graph = _Tracer(closed).trace(transform)
    module = QuantizedTransform(transform, graph)
    for name, child in transform.named_children():
        setattr(module, name, child)
    module.closed = [name for name, child in transform.named_children() if any(child is each for each in closed)]
    quantizers = nn.ModuleDict()
    module.quantizers = quantizers
    sharing: dict[fx.Node, str] = {}  # nodes whose values are on the grid of this quantizer

    def quantize(node: fx.Node, known: tuple[float, float] | None = None, only_in_eval: bool = False) -> None:
        name = "input" if node.op == "placeholder" else f"after_{node.name.strip('_')}"
        quantizers[name] = ActivationQuantizer(switches, observer, known, only_in_eval)
        insert(node, f"quantizers.{name}")

    def insert(node: fx.Node, quantizer: str) -> None:
        with graph.inserting_after(node):
            quantized = graph.call_module(quantizer, (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
        sharing[quantized] = quantizer

    def quantize_parameter(node: fx.Node, user: fx.Node, axis: int | None, zero_point: int) -> None:
        name = f"of_{node.name.strip('_')}"
        if name not in quantizers:
            quantizers[name] = WeightQuantizer(switches, values[node].shape[axis or 0], axis, zero_point)
        with graph.inserting_before(user):
            user.replace_input_with(node, graph.call_module(f"quantizers.{name}", (node,)))

    values = _values(module, example)
    (output,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    constant: set[fx.Node] = set()
    for node in list(graph.nodes):
        what = operation(node)
        inputs = node.all_input_nodes
        if node.op in ("get_attr", "call_function", "call_method") and constant.issuperset(inputs):
            constant.add(node)
            continue
        if what in CONVOLVING:
            weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            if weight in constant:
                transposed = what in (F.conv_transpose1d, F.conv_transpose2d)
                quantize_parameter(weight, node, int(transposed) if per_channel else None, 0)
        elif what in COMBINING:
            for source in constant.intersection(inputs):
                quantize_parameter(source, node, None, 128)
        if what in REARRANGING and inputs and inputs[0] in sharing:
            sharing[node] = sharing[inputs[0]]
        if node.op == "output" or not _is_float(values[node]):
            continue
        if node is output:
            if output_range:
                quantize(node, output_range, only_in_eval=True)
        elif node.op == "placeholder":
            if input_range:
                quantize(node, input_range)
        elif node in sharing:
            insert(node, sharing[node])
        elif what in SIGMOIDS:
            quantize(node, (0.0, BELOW_ONE))
        elif any(_upper_bound(user) is None for user in node.users):  # what a rectifier follows is never stored
            quantize(node)
    for layer in list(module.modules()):
        if isinstance(layer, WEIGHTED):
            quantize_layer(layer, switches, per_channel)
    for block in closed:
        for layer in list(block.modules()):
            if isinstance(layer, QuantizedLayer):
                quantize_around(layer, switches, observer)
    module.pairs = nn.ModuleDict()
    targets = [node.target for node in graph.nodes]
    for node in list(graph.nodes):
        inputs = _quantizers(module, [sharing.get(each) for each in node.args if isinstance(each, fx.Node)])
        readers = _quantizers(module, [_reader(node, sharing)])
        wiring = Wiring(inputs, readers[0] if readers else None)
        if node.op == "call_module" and targets.count(node.target) == 1:
            layer = module.get_submodule(str(node.target))
            if isinstance(layer, QuantizedLayer):
                layer.wiring = wiring
        elif operation(node) in PAIRS and not node.kwargs and len(inputs) == 2 and wiring.output is not None:
            module.pairs[node.name] = PAIRS[operation(node)](switches, wiring)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(f"pairs.{node.name}", node.args))
            graph.erase_node(node)
    graph.lint()
    module.recompile()
    return module.train(transform.training)


class _Tracer(fx.Tracer):
    """Opens blocks down to torch's own layers, layers derived from these, and GDN."""

    def __init__(self, closed: list[nn.Module]) -> None:
        super().__init__()
        self.closed = closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*WEIGHTED, GDN)) or any(m is each for each in self.closed):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _is_open(layer: nn.Module) -> bool:
    """Whether a layer can be traced, and does the same in training and in evaluation, as a graph does."""
    sequence = nn.Sequential(layer)
    codes = []
    training = layer.training
    try:
        for mode in (True, False):
            codes.append(_Tracer([]).trace(sequence.train(mode)).python_code("self").src)
    except Exception:  # whatever a user's forward does that a graph cannot
        return False
    finally:
        layer.train(training)
    return codes[0] == codes[1]


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
def _values(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, Any]:
    """What each node gives for an example, in eval mode."""
    modes = {each: each.training for each in module.modules()}
    recorder = _Recorder(module.eval())
    recorder.run(example)
    for each, training in modes.items():
        each.training = training
    return recorder.values


def operation(node: fx.Node) -> Any:
    """A function, the name of a method, or the class of a module as torch knows it."""
    if node.op != "call_module":
        return node.target if node.op in ("call_function", "call_method") else None
    module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
    return type(module)


def _upper_bound(node: fx.Node) -> float | None:
    """Of a ReLU (infinity), a ReLU6 or another clamp from zero up; None for any other node."""
    what = operation(node)
    if what in SIXES:
        return 6.0
    if what in RELUS:
        return math.inf
    if what is nn.Hardtanh:
        module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
        low, high = module.min_val, module.max_val
    elif what in CLAMPS:
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        low, high = (bounds.get(name, bounds.get(f"{name}_val")) for name in ("min", "max"))
    else:
        return None
    high = math.inf if high is None else high
    return float(high) if low == 0 and isinstance(high, int | float) else None


def saturate(transform: QuantizedTransform) -> None:
    """Makes a ReLU of each clamp whose upper bound the scale of the quantizer after it keeps anyway, in place.

    Every runtime fuses a ReLU with the convolution before; the quantizers' scales must be frozen.
    """
    for node in list(transform.graph.nodes):
        bound = _upper_bound(node)
        users = [transform.get_submodule(str(user.target)) for user in node.users if user.op == "call_module"]
        if bound is None or not users or len(users) < len(node.users):
            continue
        if all(isinstance(q, ActivationQuantizer) and q.frozen and 254.5 * q.frozen[0] <= bound for q in users):
            with transform.graph.inserting_before(node):
                node.replace_all_uses_with(transform.graph.call_function(F.relu, (node.args[0],)))
            transform.graph.erase_node(node)
    transform.recompile()


def _reader(node: fx.Node, sharing: dict[fx.Node, str]) -> str | None:
    """The one quantizer that a node's result goes through, after a rectifier or not; None if there is none or more."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return sharing.get(user) or (_reader(user, sharing) if _upper_bound(user) is not None else None)


def _quantizers(module: nn.Module, names: list[str | None]) -> tuple[ActivationQuantizer, ...]:
    """The quantizers of these names; none where one is missing, or is a parameter's."""
    found = [module.get_submodule(name) if name else None for name in names]
    known = [each for each in found if isinstance(each, ActivationQuantizer)]
    return tuple(known) if len(known) == len(found) else ()


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
