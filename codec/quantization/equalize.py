"""Channels scaled so that each uses all of its tensor's range.

An int8 tensor has one scale for all of its channels, and a channel that reaches a tenth of the range has three bits
less than one that fills it. Between two convolutions with nothing but a ReLU between them a channel's scale is free:
what the first is multiplied by the second is divided by, and in float the codec is the same to the last digits
(cross-layer equalization, Nagel et al. 2019, arXiv:1906.04721). There it evens out weights' ranges; here weights have
a scale for each output channel, and `codec.quantization.rounding` removes their noise, so that only activations count.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.quantization.channels import scale_input, scale_output
from codec.quantization.graph import RELUS, QuantizedTransform, operation
from codec.quantization.layers import CONVOLUTIONS, QuantizedLayer
from codec.quantization.quantizers import ActivationQuantizer

PASSING = (*RELUS, nn.LeakyReLU, F.leaky_relu, nn.Identity, ActivationQuantizer)
"""f(s x) = s f(x) for each s > 0."""


@torch.no_grad()
def equalize(transform: QuantizedTransform, inputs: Sequence[Tensor]) -> None:
    """Scales the channels between convolutions, in place.

    Args:
        transform: in float; no quantizer of it has a range yet.
        inputs: [B, C, H, W] each.
    """
    pairs, pictures = list(_pairs(transform)), sum(len(x) for x in inputs)
    with _greatest([second for _, second in pairs]) as reached:
        for x in inputs:
            transform(x)
    for first, second in pairs:
        greatest = reached[second]
        whole = greatest.max()
        if whole > 0:  # the next picture may show more of a channel than so many have
            scale = whole / (greatest + whole / pictures)
            scale_output(first, scale)
            scale_input(second, 1 / scale)


def _pairs(transform: QuantizedTransform) -> Iterator[tuple[QuantizedLayer, QuantizedLayer]]:
    """Convolutions of which the second takes what the first gives, past a ReLU or not, and nothing else takes it."""
    layers = {node: layer for node in transform.graph.nodes if (layer := _convolution(transform, node)) is not None}
    for node, second in layers.items():
        (before,) = node.all_input_nodes
        while before not in layers and len(before.users) == 1 and operation(before) in PASSING:
            before = before.all_input_nodes[0]
        first = layers.get(before)
        if first is not None and len(before.users) == 1:
            yield first, second


def _convolution(transform: QuantizedTransform, node: fx.Node) -> QuantizedLayer | None:
    """That a node calls, and no other does; all channels in one group, or each by itself."""
    if node.op != "call_module" or sum(each.target == node.target for each in transform.graph.nodes) > 1:
        return None
    layer = transform.get_submodule(str(node.target))
    if not isinstance(layer, QuantizedLayer) or not layer.is_linear or not isinstance(layer, CONVOLUTIONS):
        return None
    one_each = layer.groups == layer.in_channels == layer.out_channels
    return layer if layer.groups == 1 or one_each else None


@contextmanager
def _greatest(layers: list[QuantizedLayer]) -> Iterator[dict[QuantizedLayer, Tensor]]:
    """The greatest magnitude that each channel of each layer's input reaches, over what is run."""
    reached: dict[QuantizedLayer, Tensor] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, QuantizedLayer)
        seen = inputs[0].detach().abs().transpose(0, 1).flatten(1).amax(1)
        reached[layer] = torch.maximum(reached[layer], seen) if layer in reached else seen

    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()
