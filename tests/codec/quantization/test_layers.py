"""Quantized layers: their weights, biases and gradients, and in evaluation an int8 runtime's integers."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized_codecs import N, make, step, with_block
from torch import Tensor, nn

from codec.description.architecture import Architecture, BlockChoice, Phase, Quantization
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.layers import QuantizedLayer, quantize_layer
from codec.quantization.observers import OBSERVERS
from codec.quantization.phases import build, enter, prepare
from codec.quantization.quantizers import ActivationQuantizer, Switches, Wiring
from training.deconvolution import BiasApart


@pytest.mark.parametrize("part", ["g_a", "g_s"])
def test_weights_are_int8_with_a_scale_for_each_output_channel(part: str, trained: Codec) -> None:
    for layer in copy.deepcopy(trained).train().get_submodule(part).modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        axis, scale = layer.weight_quantizer.axis, layer.weight_quantizer.scale
        assert axis == (1 if isinstance(layer, nn.ConvTranspose2d) else 0)
        by_channel = layer.weight.detach().transpose(0, axis).flatten(1)
        raw = layer.float_weight.detach().transpose(0, axis).flatten(1)
        q = by_channel / scale[:, None]
        torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-4)
        greatest = q.abs().amax(1)
        small = scale > raw.abs().amax(1) / 127 * 1.001  # beside its bias
        torch.testing.assert_close(greatest[~small], torch.full_like(greatest[~small], 127.0), rtol=0, atol=1e-3)
        assert (greatest <= 127.001).all()
        assert ((by_channel - raw).abs() <= scale[:, None] / 2 * 1.001).all()
        counted = layer.eval().weight.transpose(0, axis).flatten(1)
        assert torch.equal(counted, q.round() if layer.in_integers else by_channel)


def test_one_scale_a_layer_where_asked() -> None:
    codec = make("relu", Quantization("all", w_per_channel=False, phase=Phase.EVAL_READY))
    layer = codec.g_a.get_submodule("2")
    layer.weight_quantizer.update_scale(layer.float_weight)
    assert layer.weight_quantizer.scale.shape == (1,)
    q = layer.weight / layer.weight_quantizer.scale
    torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-4)


def test_biases_are_whole_numbers_of_an_int32_accumulator(trained: Codec) -> None:
    layer = copy.deepcopy(trained).g_a.get_submodule("2")
    unit = trained.g_a.quantizers["after_add"].scale * layer.weight_quantizer.scale
    q = layer.bias
    assert torch.equal(q, q.round())
    torch.testing.assert_close(layer.train().bias, q * unit)
    assert (layer.bias - layer.float_bias).abs().max() > 0


@pytest.mark.parametrize("trains", [True, False])
def test_a_bias_is_exact_in_float32_where_the_weights_under_it_are_zero(pictures: list[Tensor], trains: bool) -> None:
    """As in a gate that has just started, W = 0 and a = 1, whose input is small."""
    codec = new_codec(Architecture(16, 24, BlockChoice("gate"), BlockChoice("gate")))
    with torch.no_grad():
        codec.g_s.get_submodule("4").weight *= 1e-5
    if trains:
        prepare(codec, Quantization("all"))
        for x in pictures:
            step(codec, x)
        enter(codec, Phase.FIXED_SCALE)
        step(codec, pictures[0])
    else:
        codec = calibrate(with_tables(codec), pictures, Quantization("all"))
    layer = codec.g_s.get_submodule("5.gain").eval()
    assert layer.bias.abs().max() <= 2**22
    torch.testing.assert_close(layer.train().bias, layer.float_bias, rtol=1e-6, atol=1e-6)


def test_the_banded_form_of_eca_has_the_same_integers(trained: Codec) -> None:
    conv = trained.g_a.get_submodule("1.eca.conv")
    assert conv.weight_quantizer.scale.numel() == 1


def as_a_runtime_does(count: np.ndarray, scales: Tensor, read_by: ActivationQuantizer) -> np.ndarray:
    """The uint8 values of an accumulator: one float32 product, half to even, saturation."""
    ratio = (scales / read_by.scale).numpy()
    return np.clip(np.rint(count.astype(np.float32) * ratio) + int(read_by.zero_point), 0, 255)


LAYERS = [
    (lambda: nn.Conv2d(24, 16, 5, 2, 2), F.conv2d, {"stride": 2, "padding": 2}),
    (lambda: nn.Conv2d(24, 24, 3, 1, 1, groups=24), F.conv2d, {"padding": 1, "groups": 24}),
    (
        lambda: nn.ConvTranspose2d(24, 16, 5, 2, 2, 1),
        F.conv_transpose2d,
        {"stride": 2, "padding": 2, "output_padding": 1},
    ),
    (lambda: BiasApart(24, 16, 5, 2, 2, 1), F.conv_transpose2d, {"stride": 2, "padding": 2, "output_padding": 1}),
]


@pytest.mark.parametrize(("make_layer", "convolve", "options"), LAYERS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_layer_counts_as_an_int8_runtime_does(
    make_layer: Callable[[], nn.Module], convolve: Callable[..., Tensor], options: dict[str, Any], per_channel: bool
) -> None:
    torch.manual_seed(0)
    layer = make_layer()
    fed_by, read_by = with_range(-1.0, 3.0), with_range(-0.7, 0.9)
    quantize_layer(layer, SWITCHED_ON, per_channel)
    layer.wiring = Wiring((fed_by,), read_by)
    x = fed_by(4 * torch.rand(1, 24, 96, 96) - 1)
    integers = ((x / fed_by.scale).round().double(), layer.weight_quantizer.integers(layer.weight).detach().double())
    bias = layer.bias / (fed_by.scale * layer.weight_quantizer.scale)
    count = convolve(*integers, bias.round().detach().double(), **options)
    scales = fed_by.scale * layer.weight_quantizer.scale.view(-1, 1, 1)
    expected = as_a_runtime_does(count.numpy(), scales, read_by)
    layer.eval()
    with torch.no_grad():
        found = read_by(layer(x)) / read_by.scale + read_by.zero_point
    assert np.array_equal(found.round().numpy(), expected)
    assert torch.equal(read_by(layer(x)).detach(), (found.round() - read_by.zero_point) * read_by.scale)
    x.requires_grad_(True)
    gradients = []
    for mode in (True, False):
        gradients.append(torch.autograd.grad(layer.train(mode)(x).sum(), (x, *layer.parameters())))
    for in_training, in_evaluation in zip(*gradients, strict=True):
        torch.testing.assert_close(in_evaluation, in_training, rtol=2e-3, atol=1e-3)


def with_range(low: float, high: float) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(SWITCHED_ON, OBSERVERS["ema"], (low, high))
    quantizer.fix_scale()
    return quantizer


SWITCHED_ON = Switches(quantize=True)


def test_a_layer_with_a_forward_of_its_own_or_with_two_places_is_left_in_float(pictures: list[Tensor]) -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight / self.weight.std(), self.bias)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.shared = Standardized(N, N, 1), nn.Conv2d(N, N, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(self.own(x)))

    codec = with_block(Twice())
    prepare(codec, Quantization("encoder"))
    step(codec, pictures[0])
    enter(codec, Phase.EVAL_READY)
    codec.eval()
    counting = {name for name, each in codec.named_modules() if isinstance(each, QuantizedLayer) and each.in_integers}
    assert counting == {"g_a.0", "g_a.2", "g_a.4", "g_a.6"}
    y = codec.g_a(pictures[0]).detach()
    torch.testing.assert_close(y, codec.train().g_a(pictures[0]), rtol=0, atol=0.05 * float(y.abs().max()))


def test_gradients_go_straight_through_inside_the_range_and_stop_outside() -> None:
    switches = Switches(quantize=True)
    quantizer = ActivationQuantizer(switches, OBSERVERS["ema"], (-1.0, 3.0))
    quantizer.fix_scale()
    x = torch.tensor([-2.0, -0.9, 0.1, 2.9, 4.0], requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    torch.testing.assert_close(y, x.clamp(-1, 3), rtol=0, atol=4 / 255 / 2 * 1.01)


def test_weights_biases_and_everything_before_them_learn(pictures: list[Tensor]) -> None:
    codec = make("gdnish", Quantization("all"))
    for x in pictures:
        step(codec, x)
    enter(codec, Phase.FIXED_SCALE)
    out = step(codec, pictures[0])
    (out["x_hat"].square().mean() + out["likelihoods"]["y"].log().neg().mean()).backward()
    for name, parameter in codec.named_parameters():
        if name.startswith("g_"):
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_weights_of_before_the_factors_are_those_that_compute(pictures: list[Tensor]) -> None:
    """An int8 checkpoint of an earlier version has equalization in its weights, and no factors."""
    codec = calibrate(with_tables(make("relu")), pictures[:1], Quantization("all"))
    assert any((layer.output_factor != 1).any() for layer in codec.modules() if isinstance(layer, QuantizedLayer))
    earlier = copy.deepcopy(codec)
    for layer in earlier.modules():
        if isinstance(layer, QuantizedLayer):
            layer.fold()
    again = build(codec.architecture).eval()
    again.load_weights({name: t for name, t in earlier.state_dict().items() if not name.endswith("_factor")})
    again.load_coding_arrays(codec.coding_arrays())
    assert torch.equal(again(pictures[1])["x_hat"], earlier(pictures[1])["x_hat"])
