"""Cross-layer equalization: scales channels so that rounding costs the result least.

An int8 tensor has one scale for all channels. A channel that reaches a tenth of the range has three bits less than one
that reaches all of it. What multiplies a channel in one convolution divides it in the next, and the float codec stays
the same, to rounding (Nagel et al. 2019, arXiv:1906.04721). A scale passes through ReLU and |x|, through both sides of
a sum alike, through each side of a product, and through a clamp from 0 whose bound is not reached
(`codec.quantization.freedoms`). So one scale may belong to several tensors, which would need different ones. The scales
are therefore those with the least noise in the result: a rounded tensor adds, for each channel, the square of the
tensor's range times the channel's gain (`codec.quantization.sensitivity`) over its squared scale.

The paper equalizes the ranges of the weights. Here the weights have a scale for each output channel, and GPTQ rounding
(`codec.quantization.rounding`) removes most of their error, so that only activations are considered.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from codec.quantization.freedoms import Freedoms
from codec.quantization.graph import QuantizedTransform
from codec.quantization.quantizers import ActivationQuantizer
from codec.quantization.sensitivity import Result, Site, observe

STEPS = 60
"""Steps of L-BFGS, at most."""

CONVERGED = 1e-5
"""A step that changes the noise by a smaller part is the last."""

NEGLIGIBLE = 1e-6
"""A part of a tensor's range that does not matter, for logs and quotients where a tensor has no negative values."""

LEAST_NOISE = 1e-30
"""Below it the noise has no gradient: the result does not depend on the free tensors, as in some untrained blocks."""

NORM = 32
"""A norm that is nearly the maximum and has a gradient for every channel."""


@torch.no_grad()
def equalize(transform: QuantizedTransform, inputs: Sequence[Tensor], result: Result) -> None:
    """Equalizes the channels of a transform, in place.

    Args:
        transform: in float; none of its quantizers has a learned range yet.
        inputs: [B, C, H, W] each.
        result: the tensor whose error matters, from the output of the transform.
    """
    sites = observe(transform, inputs, result)
    modules = {node: transform.get_submodule(str(node.target)) for node in transform.graph.nodes if _is_call(node)}
    possible = Freedoms.of(transform)
    unseen = frozenset(node for node in possible.layers if modules[node] not in sites)  # a tensor without H and W
    freedoms = Freedoms.of(transform, unseen | _reached(possible, sites, modules))
    if freedoms.free:
        _Equalizer(freedoms, sites, modules).equalize()


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_module"


def _reached(freedoms: Freedoms, sites: dict[nn.Module, Site], modules: dict[fx.Node, nn.Module]) -> frozenset[fx.Node]:
    """The clamps whose upper bound was reached: scales do not pass through them."""
    quantized = {user: sites.get(modules[user]) for node in freedoms.bounds for user in node.users if user in modules}
    return frozenset(
        node
        for node, bound in freedoms.bounds.items()
        if any((site := quantized.get(user)) is None or site.high.max() >= bound for user in node.users)
    )


class _Equalizer:
    """Minimizes the noise over the free scales, and scales the layers."""

    def __init__(self, freedoms: Freedoms, sites: dict[nn.Module, Site], modules: dict[fx.Node, nn.Module]) -> None:
        self.freedoms = freedoms
        self.sites = {node: sites[module] for node, module in modules.items() if module in sites}
        quantizers = {node: modules[node] for node in self.sites}
        self.quantized = {  # with the steps of its range
            node: each.limits[1] - each.limits[0]
            for node, each in quantizers.items()
            if isinstance(each, ActivationQuantizer)
        }

    def equalize(self) -> None:
        """Scales the layers, in place."""
        logs = self._least()
        for node, layer in self.freedoms.layers.items():
            if (of_input := self._scale(logs, node.all_input_nodes[0])) is not None:
                layer.input_factor.mul_((-of_input).exp())
            if (of_output := self._scale(logs, node)) is not None:
                layer.output_factor.mul_(of_output.exp())

    def _least(self) -> dict[int, Tensor]:
        """The logs of the free scales [C] with the least noise."""
        logs = {i: self._start(node, i).requires_grad_() for node, i in self.freedoms.free.items()}
        optimizer = torch.optim.LBFGS(
            list(logs.values()), max_iter=STEPS, tolerance_change=CONVERGED, line_search_fn="strong_wolfe"
        )

        def noise() -> Tensor:
            optimizer.zero_grad()
            log = self._noise(logs).clamp(min=LEAST_NOISE).log()
            log.backward()
            return log

        with torch.enable_grad():
            optimizer.step(noise)
        self._keep_below_bounds(logs)
        return logs

    def _start(self, layer: fx.Node, own: int) -> Tensor:
        """The log scale with which the first tensor that has a layer's scale alone uses its full range [C]."""
        alone = torch.zeros_like(self.freedoms.exponents[layer])
        alone[own] = 1
        tensors = (node for node in self.quantized if torch.equal(self.freedoms.exponents[node], alone))
        low, high = _reach(self.sites[next(tensors, layer)])
        return -torch.maximum(high, -low).log()

    def _noise(self, logs: dict[int, Tensor]) -> Tensor:
        """The power of all roundings in the result."""
        terms = [
            self._of_tensor(node, scale.exp())
            for node in self.quantized
            if (scale := self._scale(logs, node)) is not None
        ]
        return torch.stack(terms).sum()

    def _of_tensor(self, node: fx.Node, scale: Tensor) -> Tensor:
        """The power of a tensor's rounding."""
        site, steps = self.sites[node], self.quantized[node]
        low, high = _reach(site)
        reach = _largest(high * scale) + _largest(-low * scale)
        return reach.square() * (site.gain / scale.square()).sum() / (12 * steps**2)

    def _scale(self, logs: dict[int, Tensor], node: fx.Node) -> Tensor | None:
        """The log scale [C] of a node's tensor; None if it is fixed."""
        exponents = self.freedoms.exponents[node].tolist()
        terms = [exponent * logs[i] for i, exponent in enumerate(exponents) if exponent]
        return torch.stack(terms).sum(0) if terms else None

    def _keep_below_bounds(self, logs: dict[int, Tensor]) -> None:
        """Shifts the scales so that no tensor after a clamp reaches further than before."""
        for clamp in self.freedoms.bounds:
            (user, *_) = clamp.users
            scale = self._scale(logs, clamp)
            if scale is not None:
                largest = self.sites[user].high
                excess = ((largest * scale.exp()).max() / largest.max()).log()
                own = int(self.freedoms.exponents[clamp].nonzero()[-1])
                logs[own] -= excess / self.freedoms.exponents[clamp][own]


def _reach(site: Site) -> tuple[Tensor, Tensor]:
    """The range of each channel [C], with a margin, since the next picture may exceed what so many have shown."""
    low, high = site.low.clamp(max=0), site.high.clamp(min=0)
    least = NEGLIGIBLE * (high.max() - low.min()).clamp(min=NEGLIGIBLE)
    above, below = ((end.max() / site.pictures).clamp(min=least) for end in (high, -low))
    return low - below, high + above


def _largest(x: Tensor) -> Tensor:
    """The maximum of positive numbers [C], smoothed."""
    largest = x.max()
    norm: Tensor = torch.linalg.vector_norm(x / largest, NORM)
    return largest * norm
