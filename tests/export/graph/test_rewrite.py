"""Each rewrite computes what the layers that it replaces compute; with fake quantization to the same integers."""

import copy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from codecs_for_export import in_int8, make
from torch import Tensor, nn

from codec.blocks.gdnish import ECA
from codec.quantization.layers import QuantizedLayer
from codec.quantization.pairs import QuantizedPair
from codec.quantization.phases import activation_quantizers
from codec.quantization.quantizers import ActivationQuantizer
from export.graph.parts import decoder
from export.graph.rewrite import ClippedHardsigmoid, ConcatDeconv, Deconv, DepthToSpaceDeconv, rewrite

ACTS = [
    ("relu", {}),
    ("relu_mlp", {}),
    ("gate", {}),
    ("gate_mlp", {}),
    ("gdn", {}),
    ("gdnish", {}),
    ("gdnish", {"enc_residual": False, "dec_residual": False, "enc_eca": False, "enc_t": 1.0, "dec_k": 1}),
]


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def in_float(transform: nn.Module) -> nn.Module:
    """A copy that computes with fake quantization, and not in a runtime's integers."""
    copied = copy.deepcopy(transform)
    for each in copied.modules():
        if isinstance(each, QuantizedLayer | QuantizedPair):
            each.compute_in_float()
    return copied


def layer_by_layer(transform: nn.Module, other: nn.Module, x: Tensor) -> tuple[list[float], Tensor]:
    """How another form of a quantized transform differs, if each of its layers gets the transform's own input.

    One value on the other side of a half changes every later sum that contains it; so it does not reach them here.

    Returns:
        The fraction of different values after each quantizer, and the output of the other form.
    """
    stored: dict[str, Tensor] = {}
    flipped = []

    def compare(name: str, quantizer: ActivationQuantizer, output: Tensor) -> Tensor:
        flipped.append(float(((output - stored[name]).abs() > quantizer.scale / 2).double().mean()))
        return stored[name]

    transform, other = copy.deepcopy(transform), copy.deepcopy(other)
    for name, quantizer in activation_quantizers(transform):
        quantizer.register_forward_hook(lambda _, __, output, name=name: stored.update({name: output}))
    for name, quantizer in activation_quantizers(other):
        quantizer.register_forward_hook(lambda q, _, output, name=name: compare(name, q, output))
    transform(x)
    return flipped, other(x)


@pytest.fixture(scope="module")
def x(picture: Tensor) -> Tensor:
    return picture[:, :, 100:164, 180:276]


@pytest.mark.parametrize("form", [DepthToSpaceDeconv, ConcatDeconv])
@pytest.mark.parametrize("channels", [3, 4, 5])
@torch.no_grad()
def test_a_transposed_convolution_is_3x3_convolutions_of_its_phases(form: type, channels: int) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(7, channels, 5, stride=2, padding=2, output_padding=1)
    x = torch.randn(2, 7, 5, 6)
    new = form(layer)
    result = new.rearrange(*(conv(x) for conv in new.convs))
    assert largest(result, layer(x)) < 1e-6
    assert all(conv.kernel_size == (3, 3) for conv in new.convs)


@pytest.mark.parametrize("deconv", get_args(Deconv))
@pytest.mark.parametrize(("act", "options"), ACTS)
@torch.no_grad()
def test_rewritten_transforms_give_the_same(act: str, options: dict, deconv: str, x: Tensor) -> None:
    codec = make(act, options)
    y = codec.g_a(x)
    before = codec.state_dict()
    assert largest(rewrite(codec.g_a, deconv)(x), y) < 2e-6
    assert largest(rewrite(codec.g_s, deconv)(y), codec.g_s(y)) < 2e-6
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


@pytest.mark.parametrize("deconv", ["depth_to_space", "concat"])
@pytest.mark.parametrize("act", ["relu", "gate", "gdnish"])
@torch.no_grad()
def test_with_fake_quantization_they_give_the_same_integers(act: str, deconv: str, x: Tensor) -> None:
    codec = in_int8(make(act), x)
    y = codec.g_a(x)
    assert largest(rewrite(codec.g_a, deconv)(x), in_float(codec.g_a)(x)) < 1e-6
    flipped, rewritten = layer_by_layer(codec.g_a, rewrite(codec.g_a, deconv), x)
    # Sums in float32 may fall on the other side of a half, in one value of ten thousand.
    assert max(flipped) < 1e-3
    assert ((rewritten - y).abs() > 1e-6 * y.abs().max()).double().mean() < 1e-3
    symbols = codec.entropy_bottleneck.symbols(y)
    picture = codec.g_s(symbols + codec.entropy_bottleneck.medians())
    steps = (decoder(codec, deconv, (4, 6))(symbols) - picture).abs() * 255
    assert (steps > 0.01).double().mean() < 1e-4
    assert steps.max() < 1.01


@torch.no_grad()
def test_the_scales_of_a_rewritten_layer_are_its_own(x: Tensor) -> None:
    codec = in_int8(make("relu"), x)
    own = codec.g_s.get_submodule("2").weight_quantizer.scale
    shuffled = rewrite(codec.g_s, "depth_to_space").get_submodule("2.convs.0").weight_quantizer.scale
    assert torch.equal(shuffled, own.repeat_interleave(4))
    rows = rewrite(codec.g_s, "concat").get_submodule("2.convs.1").weight_quantizer.scale
    assert torch.equal(rows, own.repeat(2))


@torch.no_grad()
def test_eca_becomes_a_1x1_convolution_with_a_banded_matrix() -> None:
    torch.manual_seed(0)
    eca = ECA(6)
    nn.init.normal_(eca.conv.weight)
    block = rewrite(nn.Sequential(eca), "transpose")
    conv = block.get_submodule("0.conv")
    assert isinstance(conv, nn.Conv2d)
    taps = F.conv1d(torch.eye(6)[:, None], eca.conv.weight, padding=1)[:, 0]
    assert torch.allclose(conv.weight[:, :, 0, 0], taps.T)
    features = torch.randn(2, 6, 8, 8)
    assert largest(block(features), eca(features)) < 1e-6


@torch.no_grad()
def test_a_hard_sigmoid_is_mul_add_clip() -> None:
    x = torch.linspace(-5, 5, 999)
    assert largest(ClippedHardsigmoid()(x), F.hardsigmoid(x)) < 1e-6
    assert isinstance(rewrite(nn.Sequential(nn.Hardsigmoid()), "concat").get_submodule("0"), ClippedHardsigmoid)


@torch.no_grad()
def test_what_follows_pointwise_is_computed_before_the_rearranging() -> None:
    nodes = [str(node.target) for node in rewrite(make("relu").g_s, "depth_to_space").graph.nodes]
    assert nodes.index("1") < nodes.index("0.rearrange") < nodes.index("2.convs.0")
