"""Rounding of weights whose errors cancel, and channels that use all of their tensor's range."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.description.architecture import Architecture, BlockChoice, Phase, Quantization
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate, equalize_channels, round_to_grid
from codec.quantization.layers import QuantizedLayer, quantize_layer
from codec.quantization.phases import enter, learn_ranges, prepare
from codec.quantization.quantizers import Switches
from codec.quantization.rounding import gptq_round, round_weights
from codec.quantization.tracing import Tracer

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 6, 5, 2, 2),
    "dilated": lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "deconv": lambda: nn.ConvTranspose2d(8, 6, 5, 2, 2, 1),
    "deconv, oblong": lambda: nn.ConvTranspose2d(8, 6, (4, 3), (2, 1), (1, 0)),
    "deconv, grouped": lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2),
    "conv1d": lambda: nn.Conv1d(8, 6, 5, 2, 2),
    "deconv1d": lambda: nn.ConvTranspose1d(8, 6, 5, 2, 2, 1),
    "linear": lambda: nn.Linear(64, 6),
}

MOST = torch.full((5, 40), 127.0, dtype=torch.float64)


@pytest.fixture(scope="module")
def maps(picture: Tensor) -> Tensor:
    """What a ReLU gives for a photograph, [4, 8, 64, 64]: neighbours are alike."""
    torch.manual_seed(0)
    crops = torch.cat([picture[..., i : i + 128, i : i + 128] for i in (0, 64, 128, 192)])
    return F.relu(F.conv2d(crops - 0.4, torch.randn(8, 3, 5, 5), stride=2, padding=2))


def quantized(layer: nn.Module, per_channel: bool = True) -> QuantizedLayer:
    """A copy with quantized weights, its scales computed."""
    layer = copy.deepcopy(layer).requires_grad_(False)
    quantize_layer(layer, Switches(quantize=True, follow=False), per_channel)
    assert isinstance(layer, QuantizedLayer)
    layer.update_weight_scale()
    return layer.eval()


def as_graph(layer: nn.Module) -> fx.GraphModule:
    """A transform of one layer."""
    transform = nn.Sequential(layer)
    return fx.GraphModule(transform, Tracer([layer]).trace(transform))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_errors_of_weights_cancel_on_inputs_like_those_seen(kind: str, per_channel: bool, maps: Tensor) -> None:
    """Over five layers of random weights; those of few weights, as depthwise ones, have few to make up for one."""
    errors = torch.zeros(2)
    for seed in range(5):
        torch.manual_seed(seed)
        layer = LAYERS[kind]()
        x = maps[:, :, 20] if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) else maps
        nearest, rounded = quantized(layer, per_channel), quantized(layer, per_channel)
        round_weights(as_graph(rounded), [x[:1], x[1:3]])
        assert torch.equal(rounded.weight, rounded.float_weight)  # on the grid already
        exact = layer(x[3:])
        errors += torch.stack([(each(x[3:]) - exact).square().mean() for each in (nearest, rounded)])
    assert errors[1] < 0.7 * errors[0]


def test_a_scale_that_follows_the_weights_stays(maps: Tensor) -> None:
    layer = quantized(LAYERS["conv"]())
    scale = layer.weight_quantizer.scale.clone()
    round_weights(as_graph(layer), [maps])
    layer.update_weight_scale()
    torch.testing.assert_close(layer.weight_quantizer.scale, scale, rtol=1e-6, atol=0)


def test_weights_on_the_grid_stay_where_they_are(maps: Tensor) -> None:
    layer = quantized(LAYERS["deconv"]())
    round_weights(as_graph(layer), [maps])
    once = layer.float_weight.clone()
    round_weights(as_graph(layer), [maps])
    assert torch.equal(layer.float_weight, once)


def test_uncorrelated_inputs_leave_rounding_to_nearest() -> None:
    weights = 100 * torch.randn(5, 40, dtype=torch.float64).clamp(-1.2, 1.2)
    assert torch.equal(gptq_round(weights, torch.eye(40, dtype=torch.float64), MOST), weights.round())
    assert torch.equal(gptq_round(weights, torch.zeros(40, 40, dtype=torch.float64), MOST), weights.round())


def test_the_last_bits_of_alike_inputs_decide_nothing() -> None:
    """Channels that hold nearly one constant each, as y_hat does where all symbols are zero."""
    torch.manual_seed(0)
    inputs = torch.full((100, 40), 0.0138, dtype=torch.float64) + 1e-3 * torch.randn(100, 1)
    weights = 100 * torch.randn(5, 40, dtype=torch.float64).clamp(-1.2, 1.2)

    def rounded() -> Tensor:
        columns = inputs * (1 + 1e-7 * torch.randn(1, 40))
        gram = columns.T @ columns
        return gptq_round(weights, gram.lerp(gram.diag().diag(), 0.01), MOST)

    once = rounded()
    assert not torch.equal(once, weights.round())
    assert all(torch.equal(once, rounded()) for _ in range(5))


def test_a_layer_that_pads_otherwise_is_rounded_to_the_nearest(maps: Tensor) -> None:
    layer = nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")
    rounded = quantized(layer)
    round_weights(as_graph(rounded), [maps])
    assert torch.equal(rounded.float_weight, layer.weight)


@pytest.fixture(scope="module")
def uneven(picture: Tensor) -> tuple[Codec, list[Tensor]]:
    """A ReLU codec whose channels reach from a thirtieth of the range to all of it, and pictures."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(16, 24, BlockChoice("relu"), BlockChoice("relu")))
    with torch.no_grad():
        for part, axis in (("g_a", 0), ("g_s", 1)):
            for i in (0, 2, 4):
                layer, after = codec.get_submodule(f"{part}.{i}"), codec.get_submodule(f"{part}.{i + 2}")
                spread = torch.logspace(-1.5, 0, 16)[torch.randperm(16)]
                layer.weight.transpose(0, axis).mul_(spread[:, None, None, None])
                layer.bias.mul_(spread)
                after.weight.transpose(0, 1 - axis).div_(spread[:, None, None, None])
        codec.g_a[6].weight *= 20
        codec.g_s[6].bias += 0.4
    pictures = [picture[..., i : i + 128, j : j + 128] for i in (0, 128, 256) for j in (0, 128, 256)]
    return with_tables(codec), pictures


def test_equalized_channels_use_their_range_and_the_codec_is_the_same(uneven: tuple[Codec, list[Tensor]]) -> None:
    codec, pictures = copy.deepcopy(uneven[0]), uneven[1]
    exact = codec(pictures[0])["x_hat"]
    prepare(codec, Quantization("all"))
    small = list(torch.cat([x.unfold(2, 32, 32).unfold(3, 32, 32).flatten(2, 3) for x in pictures]).movedim(2, 0))
    reached = []
    for _ in range(2):
        hidden = F.relu(codec.g_a.get_submodule("0")(torch.cat(small))).amax((0, 2, 3))
        reached.append(float(hidden.min() / hidden.max()))
        equalize_channels(codec, small)
    assert reached[0] < 0.1
    assert reached[1] > 0.5
    torch.testing.assert_close(codec(pictures[0])["x_hat"], exact, rtol=1e-4, atol=1e-4)


def test_a_transform_that_has_ranges_is_not_equalized(uneven: tuple[Codec, list[Tensor]]) -> None:
    codec = calibrate(uneven[0], uneven[1][:2], Quantization("all"))
    factors = codec.state_dict()["g_a.0.output_factor"].clone()
    equalize_channels(codec, uneven[1])
    assert torch.equal(codec.state_dict()["g_a.0.output_factor"], factors)


def test_calibration_with_both_is_nearer_to_the_float_codec(
    uneven: tuple[Codec, list[Tensor]],
) -> None:
    codec, pictures = uneven
    quantization = Quantization("all", act_observer="minmax")
    with_neither = copy.deepcopy(codec).eval()
    prepare(with_neither, quantization)
    with torch.no_grad():
        for x in pictures[:6]:
            with_neither(x)
            learn_ranges(with_neither)
    enter(with_neither, Phase.EVAL_READY)

    def error(int8: Codec) -> float:
        unseen = torch.cat(pictures[6:])
        return float((int8.g_a(unseen) - codec.g_a(unseen)).square().mean())

    assert error(calibrate(codec, pictures[:6], quantization)) < 0.2 * error(with_neither)


def test_rounded_weights_train_on_from_the_grid(uneven: tuple[Codec, list[Tensor]]) -> None:
    codec, pictures = copy.deepcopy(uneven[0]).train(), uneven[1]
    prepare(codec, Quantization("all"))
    codec(pictures[0], noise_keys(0, 0, torch.arange(1)))
    learn_ranges(codec)
    enter(codec, Phase.FIXED_SCALE)
    round_to_grid(codec, pictures[:2])
    assert codec.training
    codec(pictures[0], noise_keys(0, 1, torch.arange(1)))  # scales follow the weights
    for layer in codec.modules():
        if isinstance(layer, QuantizedLayer):
            torch.testing.assert_close(layer.weight, layer.float_weight, rtol=1e-5, atol=1e-6)
