"""torch.compile's backend for GPUs: Inductor, with less memory traffic for the biases of convolutions."""

from typing import Any

import torch
from torch import Tensor

_TAG = "biases apart, 1"
"""Of the graphs in torch's cache, which does not look at decompositions: another number for other decompositions."""


def gpu_backend(module: torch.fx.GraphModule, inputs: list[Any], options: dict[str, Any] | None = None) -> Any:
    """Compiles a graph with Inductor, its options and `decompositions`."""
    from torch._inductor.compile_fx import compile_fx

    with torch.compiler.config.patch(cache_key_tag=_TAG):  # type: ignore[attr-defined]
        return compile_fx(module, inputs, config_patches=options, decompositions=decompositions())


def decompositions() -> dict[Any, Any]:
    """Inductor's decompositions, and two for the biases of convolutions.

    Inductor adds a bias in a kernel after the convolution, but only after it has chosen what the backward gets: the
    sum, which it then also writes. Decomposed earlier, the backward gets the convolution's own output and adds the
    bias again.

    Inductor sums a bias's gradient over all positions in a kernel of its own. A sum over the last axis becomes a part
    of the kernel that computes the gradient, and only its small result is read for the rest. Values change only by
    rounding.
    """
    from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten
    ours = {aten.convolution.default: _bias_apart, aten.convolution_backward.default: _bias_gradient_in_two_sums}
    return {**select_decomp_table(), **ours}


def _bias_apart(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Any:
    """Decomposes `aten.convolution`."""
    if bias is None:
        return NotImplemented
    y = torch.ops.aten.convolution(x, weight, None, *geometry)
    return y + bias.view(-1, *[1] * (y.dim() - 2))


def _bias_gradient_in_two_sums(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    """Decomposes `aten.convolution_backward`; its last argument says which of three gradients are wanted."""
    *geometry, (of_x, of_weight, of_bias) = rest
    if not of_bias:
        return NotImplemented
    exact = torch.promote_types(gradient.dtype, torch.float32)
    by_row = gradient.sum(-1, dtype=exact)
    summed = by_row.sum([0, *range(2, by_row.dim())]).to(gradient.dtype)
    of_both = torch.ops.aten.convolution_backward(gradient, x, weight, *geometry, [of_x, of_weight, False])
    return of_both[0], of_both[1], summed
