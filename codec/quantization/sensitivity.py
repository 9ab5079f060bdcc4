"""How much each tensor of a transform contributes to the error of the result when it is rounded.

Rounding adds noise that is nearly independent from value to value. The power that it has in the result is then the sum
over values of noise power times squared gradient. The gradients of a random signed sum of the result's values give this
for all values at once: their squares have the mean sum over results of the squared derivative (Hutchinson's estimator).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.quantization.layers import QuantizedLayer
from codec.quantization.quantizers import ActivationQuantizer

Result = Callable[[Tensor], Tensor]
WithGradients = dict[nn.Module, list[tuple[Tensor, Tensor]]]
"""By quantizer or layer, each of its outputs and the gradient for it; most are [B, C, H, W]."""


@dataclass
class Site:
    """What pictures have shown of a tensor: a quantizer's, or the output of a layer.

    Attributes:
        low, high: [C], the smallest and the largest value of each channel.
        pictures: how many pictures were seen.
        gain: [C], the power in the result of noise of power 1 in all values of the channel, summed over pictures.
    """

    low: Tensor
    high: Tensor
    pictures: int
    gain: Tensor

    def joined(self, other: "Site") -> "Site":
        """What both have shown."""
        return Site(
            low=torch.minimum(self.low, other.low),
            high=torch.maximum(self.high, other.high),
            pictures=self.pictures + other.pictures,
            gain=self.gain + other.gain,
        )


def observe(transform: nn.Module, inputs: Sequence[Tensor], result: Result) -> dict[nn.Module, Site]:
    """What each quantizer that learns and each layer's output shows for the inputs of a transform.

    Args:
        transform: computing in float, without learning.
        inputs: [B, C, H, W] each.
        result: the tensor whose error matters, from the output of the transform.
    """
    found: dict[nn.Module, Site] = {}
    for seen in with_gradients(transform, inputs, result):
        for module, pairs in seen.items():
            for tensor, gradient in pairs:
                if tensor.ndim == 4:
                    site = _site(tensor, gradient)
                    found[module] = found[module].joined(site) if module in found else site
    return found


@torch.enable_grad()
def with_gradients(transform: nn.Module, inputs: Iterable[Tensor], result: Result) -> Iterator[WithGradients]:
    """For each input of a transform the outputs of its quantizers that learn and of its layers, with their gradients.

    The gradients are those of a sum of the result's values with random signs. The arguments are those of `observe`.
    """
    probe = torch.Generator().manual_seed(0)
    for x in inputs:
        seen = _tensors(transform, x.detach().clone().requires_grad_(), result)
        (end,) = seen.pop(transform)
        signs = torch.randint(0, 2, end.shape, generator=probe).to(end) * 2 - 1
        tensors = [tensor for found in seen.values() for tensor in found]
        gradients = iter(torch.autograd.grad(end, tensors, signs, allow_unused=True, materialize_grads=True))
        yield {module: [(tensor.detach(), next(gradients)) for tensor in found] for module, found in seen.items()}


def _tensors(transform: nn.Module, x: Tensor, result: Result) -> dict[nn.Module, list[Tensor]]:
    """The outputs for an input, by quantizer and layer; under the transform itself the result."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            seen.setdefault(module, []).append(output)

    modules = [
        module
        for module in transform.modules()
        if isinstance(module, QuantizedLayer) or (isinstance(module, ActivationQuantizer) and module.learns)
    ]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        seen[transform] = [result(transform(x))]
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _site(x: Tensor, gradient: Tensor) -> Site:
    """The site of one tensor."""
    values = _by_channel(x)
    return Site(values.amin(1), values.amax(1), len(x), _by_channel(gradient).square().sum(1))


def _by_channel(x: Tensor) -> Tensor:
    """[B, C, H, W] to [C, B * H * W]."""
    return x.transpose(0, 1).flatten(1)
