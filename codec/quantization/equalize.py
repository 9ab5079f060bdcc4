"""Cross-layer equalization: scales channels so that each uses the full range of its tensor.

An int8 tensor has one scale for all channels. A channel that reaches a tenth of the range has three bits less than one
that reaches all of it. Between two convolutions with nothing but a ReLU between them, a channel's scale is free: what
multiplies the first convolution divides the second, and the float codec stays the same, to rounding (Nagel et al. 2019,
arXiv:1906.04721). The paper equalizes the ranges of the weights. Here the weights have a scale for each output channel,
and GPTQ rounding (`codec.quantization.rounding`) removes most of their error, so that only activations are considered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.quantization.channels import scale_input, scale_output
from codec.quantization.graph import QuantizedTransform
from codec.quantization.layers import CONVOLUTIONS, QuantizedLayer
from codec.quantization.quantizers import ActivationQuantizer
from codec.quantization.tracing import RELUS, operation

HOMOGENEOUS = (*RELUS, nn.LeakyReLU, F.leaky_relu, nn.Identity, ActivationQuantizer)
"""Operations with f(s x) = s f(x) for each s > 0."""


@torch.no_grad()
def equalize(transform: QuantizedTransform, inputs: Sequence[Tensor]) -> None:
    """Equalizes the channels between the convolutions of a transform, in place.

    Args:
        transform: in float; none of its quantizers has a learned range yet.
        inputs: [B, C, H, W] each.
    """
    pairs, pictures = list(_equalizable_pairs(transform)), sum(len(x) for x in inputs)
    with _input_maxima([second for _, second in pairs]) as maxima:
        for x in inputs:
            transform(x)
    for first, second in pairs:
        channel_maxima = maxima[second]
        tensor_maximum = channel_maxima.max()
        if tensor_maximum > 0:  # a margin, since the next picture may exceed what so many pictures have shown
            scale = tensor_maximum / (channel_maxima + tensor_maximum / pictures)
            scale_output(first, scale)
            scale_input(second, 1 / scale)


def _equalizable_pairs(transform: QuantizedTransform) -> Iterator[tuple[QuantizedLayer, QuantizedLayer]]:
    """Pairs of convolutions: the second alone reads the first's output, directly or after homogeneous operations."""
    layers = {node: layer for node in transform.graph.nodes if (layer := _convolution(transform, node)) is not None}
    for node, second in layers.items():
        (before,) = node.all_input_nodes
        while before not in layers and len(before.users) == 1 and operation(before) in HOMOGENEOUS:
            before = before.all_input_nodes[0]
        first = layers.get(before)
        if first is not None and len(before.users) == 1:
            yield first, second


def _convolution(transform: QuantizedTransform, node: fx.Node) -> QuantizedLayer | None:
    """The convolution that this node alone calls, if its channels can be scaled: one group or depthwise; else None."""
    if node.op != "call_module" or sum(other.target == node.target for other in transform.graph.nodes) > 1:
        return None
    layer = transform.get_submodule(str(node.target))
    if not isinstance(layer, QuantizedLayer) or not layer.is_linear or not isinstance(layer, CONVOLUTIONS):
        return None
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    return layer if layer.groups == 1 or depthwise else None


@contextmanager
def _input_maxima(layers: list[QuantizedLayer]) -> Iterator[dict[QuantizedLayer, Tensor]]:
    """The largest magnitude in each channel of each layer's input [C], over all that runs in the context."""
    maxima: dict[QuantizedLayer, Tensor] = {}

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, QuantizedLayer)
        seen = inputs[0].detach().abs().transpose(0, 1).flatten(1).amax(1)
        maxima[layer] = torch.maximum(maxima[layer], seen) if layer in maxima else seen

    handles = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        yield maxima
    finally:
        for handle in handles:
            handle.remove()
