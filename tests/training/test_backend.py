"""What is compiled for GPUs computes the same as torch."""

from collections.abc import Callable

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor, nn

from training.backend import decompositions

LAYERS = (
    nn.Conv2d(3, 4, 5, stride=2, padding=2),
    nn.ConvTranspose2d(3, 4, 5, stride=2, padding=2, output_padding=1),
    nn.Conv2d(3, 4, 1, bias=False),
    nn.Conv1d(3, 4, 3, padding=1),
)


def traced(layer: nn.Module, graphs: list[torch.fx.GraphModule]) -> Callable[..., Tensor]:
    """The layer as a function of its input and its parameters; its decomposed graphs are appended to the list."""
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return make_boxed_func(graph)

    return aot_function(call, fw_compiler=keep, bw_compiler=keep, decompositions=decompositions())


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_convolution_and_its_gradients_are_those_of_torch(layer: nn.Conv2d) -> None:
    layer.double()
    graphs: list[torch.fx.GraphModule] = []
    x = torch.randn(2, 3, *[8] * (layer.weight.dim() - 2), dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    got, wanted = traced(layer, graphs)(*inputs), layer(x)
    torch.testing.assert_close(got, wanted)
    direction = torch.randn_like(wanted)
    for ours, torchs in zip(*(torch.autograd.grad(y, inputs, direction) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(ours, torchs)
    (forward,), (backward,) = (
        graph.graph.find_nodes(op="call_function", target=operator.default)
        for graph, operator in zip(
            graphs, (torch.ops.aten.convolution, torch.ops.aten.convolution_backward), strict=True
        )
    )
    assert forward.args[2] is None
    assert backward.args[-1] == [True, True, False]


def test_a_bias_s_gradient_in_bf16_is_rounded_once() -> None:
    layer = nn.Conv2d(1, 1, 1).bfloat16()
    direction = torch.tensor([32.0] * 7 + [37.0], dtype=torch.bfloat16).expand(1, 1, 100, 8)  # 261 a row, no bf16
    x = torch.ones(1, 1, 100, 8, dtype=torch.bfloat16)
    traced(layer, [])(x, layer.weight, layer.bias).backward(direction)
    assert layer.bias is not None
    assert layer.bias.grad == torch.tensor(26100.0, dtype=torch.bfloat16)
