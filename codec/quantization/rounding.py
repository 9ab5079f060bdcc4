"""Weights to their int8 grid such that the errors of a layer's weights cancel on real activations.

What rounding to the nearest step does to each weight adds up, for the inputs of a convolution are far from independent:
neighbours are alike, and what a ReLU gives is positive. Here the weights of an output channel go one by one, and those
that are left make up for the error so far: GPTQ (Frantar et al. 2022, arXiv:2210.17323), an optimal brain surgeon
(Hassibi and Stork 1992), for convolutions, and for each output phase of a transposed one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.quantization.layers import CONVOLUTIONS, QuantizedLayer

POSITIONS = 16_384
"""Of a layer's output, to learn the inputs' correlations from."""

LARGEST = 128
"""Side of the part of a layer's input that is looked at: every value of it is copied for each tap."""

SHRINKAGE = 0.1
"""How far correlations are taken back, times inputs a value / positions: few positions know little of them."""

BLOCK = 128
"""Weights that are rounded before what they did is taken to all others."""


@dataclass(frozen=True)
class Geometry:
    """A convolution or a linear layer as a 2-D convolution."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool

    @classmethod
    def of(cls, layer: nn.Module) -> "Geometry | None":
        """None for one that pads otherwise than with so many zeros."""
        if isinstance(layer, nn.Linear):
            return cls((1, 1), (1, 1), (0, 0), (1, 1), 1, False)
        assert isinstance(layer, CONVOLUTIONS)
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        kernel, stride, padding, dilation = (_two(size, 0 if size is layer.padding else 1) for size in sizes)
        return cls(kernel, stride, padding, dilation, layer.groups, layer.transposed)

    def picture(self, x: Tensor, layer: nn.Module) -> Tensor:
        """The layer's input as [B, C, H, W]."""
        if isinstance(layer, nn.Linear):
            return x.reshape(-1, x.shape[-1], 1, 1)
        return x if x.ndim == 4 else x[:, :, None]

    def phases(self) -> Iterator[tuple[list[int], list[int], list[int], list[int]]]:
        """Of a transposed convolution's output: the taps that reach it, and the inputs that they read, in both axes."""
        axes = []
        for k, s, p, d in zip(self.kernel, self.stride, self.padding, self.dilation, strict=True):
            each = [[t for t in range(k) if (phase + p - t * d) % s == 0] for phase in range(s)]
            axes.append([(taps, [(phase + p - t * d) // s for t in taps]) for phase, taps in enumerate(each) if taps])
        for (rows, above), (columns, beside) in product(*axes):
            yield rows, columns, above, beside


def _two(size: Sequence[int], first: int) -> tuple[int, int]:
    return (size[0], size[1]) if len(size) == 2 else (first, size[0])


def _middle(x: Tensor) -> Tensor:
    """At most LARGEST x LARGEST of a map, from its middle."""
    top, left = (max(0, side - LARGEST) // 2 for side in x.shape[2:])
    return x[:, :, top : top + LARGEST, left : left + LARGEST]


class Correlations:
    """What the inputs of a layer's weights have to do with each other, over the pictures that were seen."""

    def __init__(self, layer: QuantizedLayer, geometry: Geometry, pictures: int) -> None:
        self.layer, self.geometry = layer, geometry
        self.each = -(-POSITIONS // pictures)
        self.grams: list[Tensor] = []
        self.count = 0

    def see(self, x: Tensor) -> None:
        """Takes in one batch of the layer's inputs."""
        for k, columns in enumerate(self._columns(_middle(self.geometry.picture(x, self.layer)))):
            gram = (columns.T @ columns).double()
            if k == 0:
                self.count += len(columns)  # as many for each part
            if k == len(self.grams):
                self.grams.append(gram)
            else:
                self.grams[k] += gram

    def _columns(self, x: Tensor) -> Iterator[Tensor]:
        """For each part of the weights, in the order of `parts`: the values that they multiply [positions, weights]."""
        g = self.geometry
        for group in x.chunk(g.groups, 1):
            if not g.transposed:
                yield self._thinned(F.unfold(group, g.kernel, g.dilation, g.padding, g.stride))
                continue
            height, width = x.shape[2:]
            for _, _, above, beside in g.phases():
                reach = max(map(abs, (*above, *beside)))
                padded = F.pad(group, (reach, reach, reach, reach))
                shifted = [
                    padded[:, :, reach + a : reach + a + height, reach + b : reach + b + width]
                    for a, b in product(above, beside)
                ]
                yield self._thinned(torch.stack(shifted, 2).flatten(3).flatten(1, 2))

    def _thinned(self, columns: Tensor) -> Tensor:
        """[B, weights, positions] to at most `each` positions a picture, evenly apart."""
        step = max(1, columns.shape[2] // self.each)
        return columns[:, :, ::step].transpose(1, 2).flatten(0, 1)

    def parts(self) -> Iterator[Tensor]:
        """Places in the flat weight [output channels, weights] of what is rounded together."""
        g, weight = self.geometry, self.layer.float_weight
        places = torch.arange(weight.numel(), device=weight.device).view(*weight.shape[:2], *g.kernel)
        for group in places.chunk(g.groups, 0):
            if not g.transposed:
                yield group.flatten(1)
                continue
            for rows, columns, _, _ in g.phases():
                yield group[:, :, rows][..., columns].transpose(0, 1).flatten(1)


@torch.no_grad()
def round_weights(transform: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Puts the weights of a transform's layers on their grids, in place, each after those before it.

    Args:
        transform: in eval mode, fake quantization on, scales settled.
        inputs: [B, C, H, W] each.
    """
    for layer in _in_order(transform, inputs[0]):
        geometry = Geometry.of(layer)
        if geometry is not None and layer.is_linear:
            correlations = Correlations(layer, geometry, sum(len(x) for x in inputs))
            for x in inputs:
                correlations.see(_reaching(layer, transform, x))
            _round(correlations)


def _in_order(transform: nn.Module, x: Tensor) -> list[QuantizedLayer]:
    """The layers as they are called."""
    called: dict[QuantizedLayer, None] = {}
    layers = [each for each in transform.modules() if isinstance(each, QuantizedLayer)]
    handles = [each.register_forward_pre_hook(lambda layer, _: called.setdefault(layer)) for each in layers]
    transform(x)
    for handle in handles:
        handle.remove()
    return list(called)


class _Reached(Exception):
    """Ends a forward whose rest does not matter."""


def _reaching(layer: QuantizedLayer, transform: nn.Module, x: Tensor) -> Tensor:
    """What a layer gets when x goes in; where it is called more than once, the first time."""
    reached = x

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached
        reached = inputs[0]
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        transform(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached


def _round(correlations: Correlations) -> None:
    """A layer's weights, to the grid that their scales are settled for, in place."""
    layer = correlations.layer
    weight = layer.float_weight
    scales = layer.weight_quantizer.scale_along(weight).expand_as(weight).flatten()
    rounded = weight.flatten().clone()
    for places, gram in zip(correlations.parts(), correlations.grams, strict=True):
        share = min(1.0, SHRINKAGE * len(gram) / correlations.count)
        steps = rounded[places].double() / scales[places]
        rounded[places] = compensated(steps, gram.lerp(gram.diag().diag(), share)).to(rounded) * scales[places]
    weight.copy_(rounded.view_as(weight))


def compensated(weights: Tensor, gram: Tensor) -> Tensor:
    """Whole numbers in -127..127 whose products with the inputs are near those of the weights.

    Args:
        weights: float64 [rows, K], in units of their grid.
        gram: float64 [K, K], inputs times inputs, positive semidefinite.

    Returns:
        float64 [rows, K]. The greatest of each row is rounded to the nearest, so that a scale that follows the weights
        stays as it is.
    """
    order = gram.diag().argsort(descending=True)
    w, gram = weights[:, order], gram[order][:, order]
    nearest, greatest = w.round(), w.abs() == w.abs().amax(1, keepdim=True)
    gram.diagonal().add_(1e-6 * gram.diagonal().mean().clamp(min=1e-30))  # a value that is always zero has no inverse
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = torch.zeros_like(w[:, start:end])
        for i in range(start, end):
            whole = torch.where(greatest[:, i], nearest[:, i], w[:, i].round().clamp(-127, 127))
            errors[:, i - start] = (w[:, i] - whole) / factor[i, i]
            w[:, i + 1 : end] -= errors[:, i - start, None] * factor[i, i + 1 : end]
            w[:, i] = whole
        w[:, end:] -= errors @ factor[start:end, end:]
    return w[:, order.argsort()]
