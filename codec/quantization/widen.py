"""16-bit activations: operations beside them compute in 16 bits, because a chip's operators take tensors of one type.

Chips have a multiplication of 16-bit activations with 8-bit weights, but neither Arm's nor Qualcomm's cores mix 8-bit
and 16-bit activations in a convolution, and Arm's in no operation. So each 8-bit tensor of such an operation is
converted: before it, if it is an operand, after it, if it is the result (`quantizers.Widened`).
"""

from dataclasses import replace

from torch import fx, nn

from codec.compressai import GDN
from codec.quantization.graph import QuantizedTransform
from codec.quantization.layers import QuantizedLayer
from codec.quantization.pairs import QuantizedPair
from codec.quantization.quantizers import ActivationQuantizer, WeightQuantizer, Widened
from codec.quantization.tracing import REARRANGING, called_module, operation, rectifier_bound


def widen(transform: QuantizedTransform) -> None:
    """Converts the 8-bit tensors of operations that have a 16-bit tensor too, in place.

    GDN computes in float, and blocks that could not be traced stay as they are. So do the layers beside y, whose 8 bits
    are no quantizer's of the graph.
    """
    transform.widened = nn.ModuleDict()
    for node in list(transform.graph.nodes):
        if _is_operation(transform, node):
            _widen_operation(transform, node)
    transform.graph.lint()
    transform.recompile()


def _is_operation(transform: QuantizedTransform, node: fx.Node) -> bool:
    called = operation(node)
    if called is None or called in REARRANGING:
        return False
    if isinstance(called, type) and issubclass(called, (GDN, ActivationQuantizer, WeightQuantizer, Widened)):
        return False
    return node.op != "call_module" or str(node.target).split(".")[0] not in transform.closed


def _widen_operation(transform: QuantizedTransform, node: fx.Node) -> None:
    """Converts the 8-bit operands and the 8-bit result of an operation, if one of its tensors has 16 bits."""
    end = next((user for user in node.users if len(node.users) == 1 and rectifier_bound(user) is not None), node)
    operands = {each: found for each in node.all_input_nodes if (found := _quantizer(each))}
    results = {each: found for each in end.users if (found := _quantizer(each))}
    if all(found.bits == 8 for found in (*operands.values(), *results.values())):
        return
    for source in node.all_input_nodes:
        parameter = called_module(source) if source.op == "call_module" else None
        if isinstance(parameter, WeightQuantizer) and parameter.axis is None:
            parameter.bits, parameter.zero_point = 16, 0
    for operand, quantizer in operands.items():
        if quantizer.bits == 8:
            with transform.graph.inserting_after(operand):
                node.replace_input_with(operand, transform.graph.call_module(_widened(transform, operand), (operand,)))
    for result, quantizer in results.items():
        if quantizer.bits == 8:
            with transform.graph.inserting_before(result):
                result.replace_input_with(end, transform.graph.call_module(_widened(transform, result), (end,)))
    called = called_module(node) if node.op == "call_module" else None
    if isinstance(called, QuantizedLayer | QuantizedPair):
        wide: dict[object, Widened] = {
            each.narrow: each for each in transform.widened.values() if isinstance(each, Widened)
        }
        before = called.wiring
        inputs = tuple(wide.get(each, each) for each in before.inputs)
        called.wiring = replace(before, inputs=inputs, output=wide.get(before.output, before.output))


def _quantizer(node: fx.Node) -> ActivationQuantizer | None:
    """The activation quantizer that a node calls, if it calls one."""
    module = called_module(node) if node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) else None


def _widened(transform: QuantizedTransform, node: fx.Node) -> str:
    """The name of the 16-bit form of the quantizer that a node calls; it is made if there is none yet."""
    name = str(node.target).split(".")[-1]
    if name not in transform.widened:
        transform.widened[name] = Widened(called_module(node))
    return f"widened.{name}"
