"""GPTQ rounding: puts weights on their int8 grid so that the errors of a layer's weights cancel on real activations.

Rounding each weight to nearest lets the errors add up, because the inputs of a convolution are correlated: neighbours
are alike, and the output of a ReLU is positive. GPTQ (Frantar et al. 2022, arXiv:2210.17323; the optimal brain surgeon
of Hassibi and Stork 1992) rounds the weights of an output channel one by one, and changes the weights that are left so
that they compensate the error so far. Here it does this for convolutions, and for each output phase of a transposed
convolution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.quantization.layers import CONVOLUTIONS, QuantizedLayer

POSITIONS = 16_384
"""Output positions of a layer that its Gram matrix is computed from."""

CHUNK = 1024
"""Positions that are converted to float64 at a time, which takes twice their memory."""

LARGEST_SIDE = 128
"""Side of the crop of a layer's input that is used: unfolding copies each of its values once for each tap."""

SHRINKAGE = 0.1
"""Off-diagonal shrinkage of a Gram matrix, times inputs per value / positions: few positions estimate it badly."""

BLOCK = 128
"""Weights that are rounded before their errors are propagated to the weights after the block."""


@dataclass(frozen=True)
class Geometry:
    """A convolution or a linear layer, described as a 2-D convolution."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool

    @classmethod
    def of(cls, layer: nn.Module) -> "Geometry | None":
        """The geometry of a layer; None if it does not pad with a given number of zeros."""
        if isinstance(layer, nn.Linear):
            return cls((1, 1), (1, 1), (0, 0), (1, 1), 1, False)
        assert isinstance(layer, CONVOLUTIONS)
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        kernel, stride, padding, dilation = (_pair(size, 0 if size is layer.padding else 1) for size in sizes)
        return cls(kernel, stride, padding, dilation, layer.groups, layer.transposed)

    def as_4d(self, x: Tensor, layer: nn.Module) -> Tensor:
        """The layer's input as [B, C, H, W]."""
        if isinstance(layer, nn.Linear):
            return x.reshape(-1, x.shape[-1], 1, 1)
        return x if x.ndim == 4 else x[:, :, None]

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output of a convolution that is not transposed, for an input [B, C, H, W]."""
        axes = zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width

    def phases(self) -> Iterator[tuple[list[int], list[int], list[int], list[int]]]:
        """The output phases of a transposed convolution.

        Yields:
            The rows and columns of the kernel that contribute to the phase, and for these the offsets of the input
            rows and columns that they multiply.
        """
        axes = []
        for k, s, p, d in zip(self.kernel, self.stride, self.padding, self.dilation, strict=True):
            by_phase = [[t for t in range(k) if (phase + p - t * d) % s == 0] for phase in range(s)]
            axes.append([(taps, [(i + p - t * d) // s for t in taps]) for i, taps in enumerate(by_phase) if taps])
        for (rows, row_offsets), (columns, column_offsets) in product(*axes):
            yield rows, columns, row_offsets, column_offsets


def _pair(size: Sequence[int], first: int) -> tuple[int, int]:
    """A size for each of two axes; `first` is that of the axis that a 1-D layer lacks."""
    return (size[0], size[1]) if len(size) == 2 else (first, size[0])


class GramMatrices:
    """Inputs times inputs of a layer, summed over output positions: one matrix for each part of its weights.

    A part holds the weights that multiply the same inputs: a group of a convolution, or a group and output phase of a
    transposed convolution.

    Attributes:
        matrices: float64 [K, K] for each part, K weights of an output channel.
        positions: how many positions were summed.
    """

    def __init__(self, layer: QuantizedLayer, geometry: Geometry, pictures: int) -> None:
        self.layer, self.geometry = layer, geometry
        self.positions_per_picture = -(-POSITIONS // pictures)
        self.matrices: list[Tensor] = []
        self.positions = 0

    def add(self, x: Tensor) -> None:
        """Adds a batch of the layer's inputs."""
        for part, columns in enumerate(self._columns(_center_crop(self.geometry.as_4d(x, self.layer)))):
            if part == 0:
                self.positions += len(columns)  # the same number for each part
            if part == len(self.matrices):
                self.matrices.append(gram_matrix(columns))
            else:
                self.matrices[part] += gram_matrix(columns)

    def _columns(self, x: Tensor) -> Iterator[Tensor]:
        """For each part, in the order of `parts`, the inputs that its weights multiply [positions, K].

        They are those of evenly spaced positions of each picture.
        """
        g = self.geometry
        if g.transposed:
            sides, stride = (x.shape[2], x.shape[3]), (1, 1)
            offsets = [(rows, columns) for _, _, rows, columns in g.phases()]
        else:
            taps = [[t * d - p for t in range(k)] for k, d, p in zip(g.kernel, g.dilation, g.padding, strict=True)]
            sides, stride = g.output_size(x), g.stride
            offsets = [(taps[0], taps[1])]
        positions = sides[0] * sides[1]
        at = torch.arange(0, positions, max(1, positions // self.positions_per_picture), device=x.device)
        top, left = at // sides[1] * stride[0], at % sides[1] * stride[1]
        for group in x.chunk(g.groups, 1):
            for rows, columns in offsets:
                reach = max(map(abs, (*rows, *columns)))
                padded = F.pad(group, (reach, reach, reach, reach))
                shifted = [padded[:, :, top + reach + i, left + reach + j] for i, j in product(rows, columns)]
                yield torch.stack(shifted, 2).flatten(1, 2).transpose(1, 2).flatten(0, 1)

    def parts(self) -> Iterator[Tensor]:
        """For each part, the indices of its weights in the flat weight [output channels, K]."""
        g, weight = self.geometry, self.layer.float_weight
        indices = torch.arange(weight.numel(), device=weight.device).view(*weight.shape[:2], *g.kernel)
        for group in indices.chunk(g.groups, 0):
            if not g.transposed:
                yield group.flatten(1)
                continue
            for rows, columns, _, _ in g.phases():
                yield group[:, :, rows][..., columns].transpose(0, 1).flatten(1)


def _center_crop(x: Tensor) -> Tensor:
    """At most LARGEST_SIDE x LARGEST_SIDE from the middle of a feature map."""
    top, left = (max(0, side - LARGEST_SIDE) // 2 for side in x.shape[2:])
    return x[:, :, top : top + LARGEST_SIDE, left : left + LARGEST_SIDE]


def gram_matrix(columns: Tensor) -> Tensor:
    """columns.T @ columns in float64: for quantized values the sum is exact, so that its order does not matter."""
    gram = columns.new_zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    for chunk in columns.split(CHUNK):
        gram.addmm_(chunk.T.double(), chunk.double())
    return gram


@torch.no_grad()
def round_weights(transform: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Rounds the weights of a transform's layers to their grids, in place, layer by layer in the order of calls.

    Args:
        transform: in eval mode, fake quantization on, scales fixed.
        inputs: [B, C, H, W] each.
    """
    runs = [_Run(transform, x) for x in inputs]
    rounded: set[nn.Module] = set()
    for node in transform.graph.nodes:
        if node.op == "call_module":
            module = transform.get_submodule(str(node.target))
            if module not in rounded:  # of a layer that is called twice, the inputs of the first call count
                rounded.add(module)
                _round_inside(module, [run.input_of(node) for run in runs])
        for run in runs:
            run.take(node)


class _Run(fx.Interpreter):
    """A transform's forward for one input, that goes on node by node."""

    def __init__(self, transform: fx.GraphModule, x: Tensor) -> None:
        super().__init__(transform)
        self.args_iter = iter((x,))

    def input_of(self, node: fx.Node) -> Tensor:
        """What a module is called with."""
        found: Tensor = self.fetch_args_kwargs_from_env(node)[0][0]
        return found

    def take(self, node: fx.Node) -> None:
        """Computes the node that comes next, and forgets what no later node needs."""
        self.env[node] = self.run_node(node)
        for unneeded in self.user_to_last_uses.get(node, ()):
            del self.env[unneeded]


def _round_inside(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Rounds the weights of a layer, or of the layers in a block that is one node, for inputs of the module."""
    for layer in _layers_in_call_order(module, inputs[0]):
        geometry = Geometry.of(layer)
        if geometry is not None and layer.is_linear:
            grams = GramMatrices(layer, geometry, sum(len(x) for x in inputs))
            for x in inputs:
                grams.add(_input_of(layer, module, x))
            _round_layer(grams)


def _layers_in_call_order(module: nn.Module, x: Tensor) -> list[QuantizedLayer]:
    """The quantized layers that a forward calls, each once."""
    layers = [each for each in module.modules() if isinstance(each, QuantizedLayer)]
    if layers == [module] or not layers:
        return layers
    called: dict[QuantizedLayer, None] = {}
    handles = [layer.register_forward_pre_hook(lambda layer, _: called.setdefault(layer)) for layer in layers]
    module(x)
    for handle in handles:
        handle.remove()
    return list(called)


class _Reached(Exception):
    """Ends a forward once its needed part is done."""


def _input_of(layer: QuantizedLayer, module: nn.Module, x: Tensor) -> Tensor:
    """The input of a layer for an input of the module; that of the first call, if there are several."""
    reached = x

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached
        reached = inputs[0]
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        module(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached


def _round_layer(grams: GramMatrices) -> None:
    """Rounds a layer's weights to the grid of their scales, in place."""
    layer = grams.layer
    weight = layer.float_weight
    scales = layer.weight_quantizer.scale_along(weight).expand_as(weight).flatten()
    coarse = layer.weight_quantizer.coarse_along(weight).expand_as(weight).flatten()
    rounded = weight.flatten().clone()
    for part, gram in zip(grams.parts(), grams.matrices, strict=True):
        shrinkage = min(1.0, SHRINKAGE * len(gram) / grams.positions)
        steps = rounded[part].double() / scales[part]
        shrunk = gram.lerp(gram.diag().diag(), shrinkage)
        finer = (coarse[part] / scales[part]).double()
        by_input = finer[0] / finer[0].amin()  # the same for all outputs
        steps = gptq_round(steps, shrunk / (by_input[:, None] * by_input), 127 * finer)
        rounded[part] = steps.to(rounded) * scales[part]
    layer.set_float_weight(rounded.view_as(weight))


def gptq_round(weights: Tensor, gram: Tensor, most: Tensor) -> Tensor:
    """Integers whose products with the inputs are close to those of the weights (GPTQ, algorithm 1).

    Args:
        weights: float64 [rows, K], in units of their grid.
        gram: float64 [K, K], inputs times inputs, each in the unit that its weights' grids give it; positive
            semidefinite.
        most: float64 [rows, K], the largest magnitude of each integer.

    Returns:
        float64 [rows, K]. The largest weight of each row is rounded to nearest, so that a scale that follows the
        weights does not change.
    """
    # Largest energy first; compared in octaves, so that the last bits of similar energies do not set the order.
    energy = gram.diag().clamp(min=torch.finfo(gram.dtype).tiny).log2().round()
    order = energy.argsort(descending=True, stable=True)
    w, gram, most = weights[:, order], gram[order][:, order], most[:, order]
    part_of_most = w.abs() / most
    nearest, is_largest = w.round(), part_of_most == part_of_most.amax(1, keepdim=True)
    gram.diagonal().add_(1e-6 * gram.diagonal().mean().clamp(min=1e-30))  # an input that is always zero has no inverse
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = torch.zeros_like(w[:, start:end])
        for i in range(start, end):
            rounded = torch.where(is_largest[:, i], nearest[:, i], w[:, i].round().clamp(-most[:, i], most[:, i]))
            errors[:, i - start] = (w[:, i] - rounded) / factor[i, i]
            w[:, i + 1 : end] -= errors[:, i - start, None] * factor[i, i + 1 : end]
            w[:, i] = rounded
        w[:, end:] -= errors @ factor[start:end, end:]
    return w[:, order.argsort()]
