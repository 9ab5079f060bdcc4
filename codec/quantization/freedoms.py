"""Which channels of a transform may be scaled, and together with which others, without a change of its output."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.quantization.graph import QuantizedTransform
from codec.quantization.layers import QuantizedLayer, can_be_scaled
from codec.quantization.pairs import QuantizedProduct, QuantizedSum
from codec.quantization.quantizers import ActivationQuantizer, Widened
from codec.quantization.tracing import RELUS, operation, rectifier_bound

HOMOGENEOUS = (*RELUS, nn.LeakyReLU, F.leaky_relu, nn.Identity, nn.AdaptiveAvgPool2d, ActivationQuantizer, Widened)
"""Operations with f(s x) = s f(x) for each s > 0. A clamp from 0 is one too, below its upper bound."""


@dataclass
class Freedoms:
    """The scales of all tensors as products of free scales: log scale = exponents @ log of the free ones.

    Attributes:
        exponents: for each node that holds a tensor, its exponents [free scales].
        layers: the node of each layer, whose output is scaled through its weights and bias.
        bounds: for each clamp, its upper bound.
    """

    exponents: dict[fx.Node, Tensor]
    layers: dict[fx.Node, QuantizedLayer]
    bounds: dict[fx.Node, float]

    @classmethod
    def of(cls, transform: QuantizedTransform, fixed: frozenset[fx.Node] = frozenset()) -> "Freedoms":
        """The freedoms of a transform.

        Args:
            fixed: nodes whose scale must stay.
        """
        nodes = list(transform.graph.nodes)
        layers = {node: layer for node in nodes if (layer := _layer(transform, node)) is not None}
        row = {node: i for i, node in enumerate(nodes)}
        exponents = torch.zeros(len(nodes), len(layers), dtype=torch.float64)
        equations: list[Tensor] = []
        bounds: dict[fx.Node, float] = {}
        own = {node: i for i, node in enumerate(layers)}
        channels = [layer.weight_quantizer.scale.numel() for layer in layers.values()]

        def alike(a: Tensor, b: Tensor) -> bool:
            """Whether the scales of both belong to as many channels: nothing is broadcast over channels."""
            return len({channels[i] for i in (a.abs() + b.abs()).nonzero().flatten().tolist()}) <= 1

        for node in nodes:
            inputs = [exponents[row[each]] for each in node.all_input_nodes]
            called, bound = operation(node), rectifier_bound(node)
            if node in own:
                exponents[row[node], own[node]] = 1
            elif len(inputs) == 1 and (called in HOMOGENEOUS or bound is not None):
                exponents[row[node]] = inputs[0]
                if bound is not None and bound < float("inf"):
                    bounds[node] = bound
            elif called is QuantizedSum and len(inputs) == 2 and alike(*inputs):
                exponents[row[node]] = inputs[0]
                equations.append(inputs[0] - inputs[1])
            elif called is QuantizedProduct and len(inputs) == 2 and alike(*inputs):
                exponents[row[node]] = inputs[0] + inputs[1]
            else:
                equations += inputs
            if node in fixed:
                equations.append(exponents[row[node]])
        exponents = _eliminate(exponents, [each.clone() for each in equations])
        return cls({node: exponents[row[node]] for node in nodes}, layers, bounds)

    @property
    def free(self) -> dict[fx.Node, int]:
        """The layers whose output has a free scale, with the index of this scale."""
        own = ((node, i) for i, node in enumerate(self.layers))
        return {node: i for node, i in own if self.exponents[node][i] != 0}


def _eliminate(exponents: Tensor, equations: list[Tensor]) -> Tensor:
    """Exponents [tensors, layers] under which every equation, exponents @ log scales = 0, holds.

    The last layer of an equation is expressed by the others.
    """
    for i, equation in enumerate(equations):
        nonzero = equation.nonzero()
        if len(nonzero):
            pivot = int(nonzero[-1])
            unit = equation / equation[pivot]
            exponents = exponents - exponents[:, pivot, None] * unit
            for j in range(i + 1, len(equations)):
                equations[j] = equations[j] - equations[j][pivot] * unit
    return exponents


def _layer(transform: QuantizedTransform, node: fx.Node) -> QuantizedLayer | None:
    """The convolution that this node alone calls, if its channels can be scaled: one group or depthwise; else None."""
    if node.op != "call_module" or sum(other.target == node.target for other in transform.graph.nodes) > 1:
        return None
    layer = transform.get_submodule(str(node.target))
    return layer if isinstance(layer, QuantizedLayer) and layer.is_linear and can_be_scaled(layer) else None
