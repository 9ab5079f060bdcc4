"""Fake quantization: what is quantized, when, with which ranges; phases; checkpoints; what an exporter gets."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.blocks import make_options, options_dict
from codec.blocks.gdnish import GDNishOptions
from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import Architecture, BlockChoice, Phase, Quantization
from codec.errors import InputError
from codec.network.bottleneck import noise_keys, with_tables
from codec.network.codec import Codec
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.layers import QuantizedLayer, quantize_layer
from codec.quantization.observers import OBSERVERS
from codec.quantization.phases import (
    activation_quantizers,
    build,
    closed_layers,
    disable_fake_quant,
    enter,
    in_float,
    learn_ranges,
    prepare,
)
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring
from training.deconvolution import BiasApart

N, M = 8, 12


def make(act: str = "relu", quantization: Quantization | None = None) -> Codec:
    """A codec of random weights whose blocks do something."""
    torch.manual_seed(0)
    chosen = BlockChoice() if act == "gdn" else BlockChoice(act, options_dict(act, make_options(act, {})))
    codec = Codec(Architecture(N, M, chosen, chosen))
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.startswith("g_") and parameter.ndim > 1 and "gamma" not in name:
                parameter += 0.1 * torch.randn_like(parameter) * (parameter.std() + 0.1)
        codec.g_a[6].weight *= 20
        codec.g_s[0].weight /= 4
        codec.g_s[6].bias += 0.4
    if quantization:
        prepare(codec, quantization)
    return codec


@pytest.fixture(scope="module")
def pictures(picture: Tensor) -> list[Tensor]:
    """Four crops of the astronaut, [2, 3, 128, 128] each."""
    return [torch.cat([picture[..., i : i + 128, :128], picture[..., i : i + 128, 256:384]]) for i in (0, 96, 192, 320)]


def step(codec: Codec, x: Tensor) -> dict[str, Tensor]:
    """A forward of training, and the range learning that ends a step of the calibration."""
    out = codec(x, noise_keys(0, 0, torch.arange(len(x))))
    quantization = codec.architecture.quantization
    if quantization and quantization.learns_ranges:
        learn_ranges(codec)
    return out


@pytest.fixture(scope="module")
def trained(pictures: list[Tensor]) -> Codec:
    """A gdnish codec in the eval-ready phase, with tables."""
    codec = make("gdnish", Quantization("all"))
    for x in pictures:
        step(codec, x)
    enter(codec, Phase.FIXED_SCALE)
    step(codec, pictures[0])
    enter(codec, Phase.EVAL_READY)
    return with_tables(codec)


def ranges(codec: Codec) -> dict[str, tuple[float, float]]:
    return {name: (float(q.low), float(q.high)) for name, q in activation_quantizers(codec)}


# --- what is quantized ------------------------------------------------------------------------------------------


def test_relu_codec_is_quantized_after_its_relus_and_nowhere_else() -> None:
    codec = make("relu", Quantization("all"))
    assert [name for name, _ in activation_quantizers(codec)] == [
        *("g_a.quantizers.input", "g_a.quantizers.after_1", "g_a.quantizers.after_3", "g_a.quantizers.after_5"),
        *("g_s.quantizers.after_1", "g_s.quantizers.after_3", "g_s.quantizers.after_5", "g_s.quantizers.after_6"),
    ]
    layers = [name for name, module in codec.named_modules() if isinstance(module, QuantizedLayer)]
    assert layers == [f"{part}.{i}" for part in ("g_a", "g_s") for i in (0, 2, 4, 6)]


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_names_in_the_state_dict_stay_and_in_calibration_so_does_every_bit(act: str, pictures: list[Tensor]) -> None:
    codec, plain = make(act, Quantization("all")), make(act)
    added = codec.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() < codec.state_dict().keys()
    assert all(".quantizers." in key or ".weight_quantizer." in key for key in added)
    assert [name for name, _ in codec.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(step(codec, pictures[0])["x_hat"], step_of_float(plain, pictures[0]))


def step_of_float(codec: Codec, x: Tensor) -> Tensor:
    return codec(x, noise_keys(0, 0, torch.arange(len(x))))["x_hat"]


@pytest.mark.parametrize(("scope", "parts"), [("encoder", ["g_a"]), ("decoder", ["g_s"]), ("all", ["g_a", "g_s"])])
def test_the_scope_alone_is_quantized(scope: str, parts: list[str]) -> None:
    codec = make("gate", Quantization(scope))
    assert sorted({name.split(".")[0] for name, _ in activation_quantizers(codec)}) == parts
    quantized = {name.split(".")[0] for name, module in codec.named_modules() if isinstance(module, WeightQuantizer)}
    assert sorted(quantized) == parts


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


def test_between_layers_there_are_256_values_zero_among_them(trained: Codec, pictures: list[Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    codec = copy.deepcopy(trained)
    for name, quantizer in activation_quantizers(codec):
        quantizer.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    codec(pictures[1])
    assert len(seen) == len(list(activation_quantizers(codec))) > 40
    for name, quantizer in activation_quantizers(codec):
        q = seen[name] / quantizer.scale + quantizer.zero_point
        torch.testing.assert_close(q, q.round(), rtol=0, atol=2e-3, msg=name)
        assert q.min() > -0.01, name
        assert q.max() < 255.01, name


def test_pictures_come_and_go_as_their_own_bytes(trained: Codec, pictures: list[Tensor]) -> None:
    quantizers = dict(activation_quantizers(trained))
    for name in ("g_a.quantizers.input", "g_s.quantizers.after_6"):
        assert float(quantizers[name].scale) == pytest.approx(1 / 255, rel=1e-6)
        assert int(quantizers[name].zero_point) == 0
    torch.testing.assert_close(quantizers["g_a.quantizers.input"](pictures[0]), pictures[0], rtol=0, atol=1e-6)
    x_hat = trained(pictures[0])["x_hat"]
    torch.testing.assert_close(x_hat * 255, (x_hat * 255).round(), rtol=0, atol=1e-3)
    training = copy.deepcopy(trained).train()
    free = training(pictures[0], noise_keys(0, 0, torch.arange(2)))["x_hat"]
    assert (free * 255 - (free * 255).round()).abs().mean() > 0.1  # training sees what the decoder gives, unrounded


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
    codec = Codec(Architecture(16, 24, BlockChoice("gate"), BlockChoice("gate")))
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


# --- in evaluation ----------------------------------------------------------------------------------------------


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


# --- gradients --------------------------------------------------------------------------------------------------


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


# --- ranges and phases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observer", ["ema", "minmax"])
def test_observers(observer: str) -> None:
    quantizer = ActivationQuantizer(Switches(), OBSERVERS[observer])
    steps = [[[-1.0, 3.0], [-2.0, 5.0]], [[-3.0, 1.0]], [[0.5, 1.0]]]  # of two pictures, of one, of one
    for pictures in steps:
        for picture in pictures:
            quantizer(torch.tensor([picture]))
        quantizer.update_range(quantizer.batch.clone())
    expected = ((-1.5 - 3 + 0.5) / 3, (4 + 1 + 1) / 3) if observer == "ema" else (-3, 5)
    assert (float(quantizer.low), float(quantizer.high)) == pytest.approx(expected)


def test_a_moving_average_forgets() -> None:
    quantizer = ActivationQuantizer(Switches(), OBSERVERS["ema"])
    for low in [-100.0] + 1000 * [-1.0]:
        quantizer.update_range(torch.tensor([low, 1.0, 1.0]))
    assert -1.1 < float(quantizer.low) < -1.0


def test_micro_batches_of_a_step_count_as_one_batch(pictures: list[Tensor]) -> None:
    whole, parts = (make("gate", Quantization("all")) for _ in range(2))
    for x in pictures[:2]:
        keys = noise_keys(0, 0, torch.arange(2))
        whole(x, keys)
        for i in (0, 1):
            parts(x[i : i + 1], keys[i : i + 1])
        learn_ranges(whole)
        learn_ranges(parts)
    for name, (low, high) in ranges(whole).items():
        assert ranges(parts)[name] == pytest.approx((low, high), rel=1e-5, abs=1e-6), name


def test_phases_fix_first_the_activations_then_the_weights_and_only_freezing_happens(pictures: list[Tensor]) -> None:
    codec, plain = make("gate", Quantization("all")), make("gate")
    step(codec, pictures[0])
    learned = ranges(codec)
    step(codec, 2 * pictures[1])
    assert ranges(codec) != learned
    learned = ranges(codec)
    enter(codec, Phase.FIXED_SCALE)
    layer = codec.g_a.get_submodule("0")
    assert not torch.equal(step(codec, pictures[0])["x_hat"], step_of_float(plain, pictures[0]))
    with torch.no_grad():
        layer.float_weight.mul_(2)
    before = layer.weight_quantizer.scale.clone()
    step(codec, 3 * pictures[0])
    assert torch.equal(layer.weight_quantizer.scale, 2 * before)
    enter(codec, Phase.EVAL_READY)
    with torch.no_grad():
        layer.float_weight.div_(2)
    step(codec, pictures[0])
    assert torch.equal(layer.weight_quantizer.scale, 2 * before)
    assert ranges(codec) == learned
    disable_fake_quant(codec)
    assert torch.equal(step(codec, pictures[0])["x_hat"], step_of_float(plain, pictures[0]))
    enter(codec, Phase.EVAL_READY)
    assert not torch.equal(step(codec, pictures[0])["x_hat"], step_of_float(plain, pictures[0]))


def test_ranges_stop_learning_where_told(pictures: list[Tensor]) -> None:
    codec = make("relu", Quantization("all"))
    step(codec, pictures[0])
    learned, scale = ranges(codec), codec.g_a.get_submodule("0").weight_quantizer.scale.clone()
    enter(codec, Phase.CALIBRATION, learning=False)
    with torch.no_grad():
        codec.g_a.get_submodule("0").float_weight.mul_(2)
    codec(2 * pictures[1])
    enter(codec, Phase.FIXED_SCALE, learning=False)
    codec(2 * pictures[1])
    assert ranges(codec) == learned
    assert torch.equal(codec.g_a.get_submodule("0").weight_quantizer.scale, scale)


def test_fake_quantization_without_ranges_is_refused() -> None:
    with pytest.raises(InputError, match=r"g_a\.quantizers\.after_1 has no range yet"):
        enter(make("relu", Quantization("all")), Phase.FIXED_SCALE)


def test_in_eval_it_stays_unless_told_otherwise(trained: Codec, pictures: list[Tensor]) -> None:
    state = trained.state_dict()
    quantization = Quantization("all", phase=Phase.EVAL_READY, eval_fakequant=False)
    architecture = Architecture(N, M, trained.architecture.g_a, trained.architecture.g_s, quantization)
    codec = build(architecture)
    codec.load_weights(state)
    plain = in_float(trained)(pictures[0])["x_hat"]
    assert torch.equal(codec.eval()(pictures[0])["x_hat"], plain)
    training = step_of_float(codec.train(), pictures[0])
    assert not torch.equal(training, step_of_float(in_float(trained), pictures[0]))
    assert not torch.equal(trained(pictures[0])["x_hat"], plain)


# --- symbols ----------------------------------------------------------------------------------------------------


def test_symbols_are_clamped_to_8_bits_where_the_tables_fit_in_them(trained: Codec, pictures: list[Tensor]) -> None:
    bottleneck = trained.entropy_bottleneck
    assert bottleneck.symbol_range() == (-215, 215)  # densities that were never trained
    assert bottleneck.symbol_limits is None
    narrow = copy.deepcopy(trained)
    with torch.no_grad():
        for matrix in narrow.entropy_bottleneck.matrices:
            matrix += 0.5
    narrow = with_tables(narrow)
    assert narrow.entropy_bottleneck.symbols_fit(-128, 127)
    assert narrow.entropy_bottleneck.symbol_limits == (-128, 127)
    y = torch.tensor([-400.0, -128.4, -3.2, 127.4, 400.0]).view(1, 1, 1, 5).expand(1, M, 1, 5)
    symbols = narrow.entropy_bottleneck.symbols(y + narrow.entropy_bottleneck.medians())
    assert symbols[0, 0, 0].tolist() == [-128, -128, -3, 127, 127]
    y_hat, _, _ = narrow.entropy_bottleneck(y)
    assert torch.equal(y_hat, symbols_of(narrow, y) + narrow.entropy_bottleneck.medians())
    training, _, _ = narrow.entropy_bottleneck(y, noise_keys(0, 0, torch.arange(1)))
    assert training.abs().max() > 399  # training knows no limits
    disable_fake_quant(narrow)
    assert narrow.entropy_bottleneck.symbol_limits is None


def symbols_of(codec: Codec, y: Tensor) -> Tensor:
    return (y - codec.entropy_bottleneck.medians()).round().clamp(-128, 127)


# --- checkpoints and copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_a_checkpoint_brings_its_quantization_along(act: str, pictures: list[Tensor], tmp_path: Path) -> None:
    codec = calibrate(with_tables(make(act)), pictures, Quantization("all", act_observer="minmax"))
    save_codec(tmp_path / "c.safetensors", codec, Description(step=3))
    loaded, _ = load_codec(tmp_path / "c.safetensors")
    assert loaded.architecture == codec.architecture
    assert loaded.architecture.quantization == Quantization("all", act_observer="minmax", phase=Phase.EVAL_READY)
    for x in pictures[:2]:
        assert torch.equal(loaded(x)["x_hat"], codec(x)["x_hat"])
    again = with_tables(loaded)
    assert again.state_dict().keys() == codec.state_dict().keys()
    assert torch.equal(again(pictures[0])["x_hat"], codec(pictures[0])["x_hat"])


def test_a_copy_has_switches_of_its_own(trained: Codec, pictures: list[Tensor]) -> None:
    before = trained(pictures[0])["x_hat"]
    other = copy.deepcopy(trained)
    disable_fake_quant(other)
    assert torch.equal(trained(pictures[0])["x_hat"], before)
    assert not torch.equal(other(pictures[0])["x_hat"], before)


# --- post-training, and for exporters ---------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_calibration_on_pictures_alone_comes_close_to_the_float_codec(act: str, pictures: list[Tensor]) -> None:
    codec = with_tables(make(act))
    quantized = calibrate(codec, pictures, Quantization("all"))
    assert codec.architecture.quantization is None
    assert not list(activation_quantizers(codec))
    for x in pictures[:2]:
        y, y_int8 = codec.g_a(x), quantized.g_a(x)
        assert (y - y_int8).square().mean() < 2e-3 * y.square().mean()
        x_hat, x_int8 = codec.g_s(y.round()), quantized.g_s(y.round())
        assert (x_hat.clamp(0, 1) - x_int8).abs().mean() < 0.02


def test_calibration_without_a_picture_is_refused() -> None:
    with pytest.raises(InputError, match="has no range yet"):
        calibrate(make("relu"), [], Quantization("all"))


@pytest.mark.parametrize("act", ["relu", "gate", "gdnish", "gdn"])
def test_an_exporter_gets_numbers_relus_and_the_same_pictures(act: str, pictures: list[Tensor]) -> None:
    codec = calibrate(with_tables(make(act)), pictures, Quantization("all"))
    ready = frozen(codec)
    torch.testing.assert_close(ready(pictures[0])["x_hat"], codec(pictures[0])["x_hat"], rtol=0, atol=1.01 / 255)
    assert (ready(pictures[0])["x_hat"] == codec(pictures[0])["x_hat"]).float().mean() > 0.999
    for _, quantizer in activation_quantizers(ready):
        assert quantizer.frozen == (float(quantizer.scale), int(quantizer.zero_point))
    for part in (ready.g_a, ready.g_s):
        called = [node.target for node in part.graph.nodes]
        assert "clamp" not in called
        assert not any("act" in str(target) and "quantizers" not in str(target) for target in called)


def test_weight_scales_that_still_follow_are_fixed_for_an_exporter(pictures: list[Tensor]) -> None:
    codec = make("relu", Quantization("encoder"))
    step(codec, pictures[0])
    enter(codec, Phase.FIXED_SCALE)
    with torch.no_grad():
        codec.g_a.get_submodule("0").float_weight.mul_(2)
    ready = frozen(codec)
    x = pictures[0]
    assert torch.equal(ready.g_a(x), codec.eval().g_a(x))
    assert not any(module.switches.follow for module in ready.modules() if isinstance(module, WeightQuantizer))


def test_what_is_not_quantized_is_not_exported_as_such(pictures: list[Tensor]) -> None:
    with pytest.raises(InputError, match="not quantized"):
        frozen(make("relu"))
    with pytest.raises(InputError, match="fake quantization is off"):
        frozen(make("relu", Quantization("all")))


# --- any block --------------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Traceable: a parameter in a product, a functional convolution, a clamp, shuffles, a sigmoid; unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(N, 1, 1) - 0.5)
        self.kernel = nn.Parameter(torch.randn(N, N, 1, 1) / N)
        self.unused = nn.Linear(2, 2)
        self.mix = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = F.conv2d(x * self.gain, self.kernel).clamp(0, 2)
        y = F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2).view(batch, channels, height, width)
        return x + self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * torch.sigmoid(x)


class Undecided(nn.Module):
    """Not traceable: what it does depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(N, N, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if float(x.detach().abs().max()) < 1e6 else x


class Noisy(nn.Module):
    """Traceable, and another function in training than in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1, self.training)


def with_block(block: nn.Module) -> Codec:
    codec = make("relu")
    for i in (1, 3, 5):
        codec.g_a[i] = copy.deepcopy(block)
    return codec


def test_a_traceable_block_is_quantized_inside(pictures: list[Tensor]) -> None:
    codec = with_block(Busy())
    names = codec.state_dict().keys()
    prepare(codec, Quantization("encoder"))
    assert names < codec.state_dict().keys()
    assert closed_layers(codec) == []
    step(codec, pictures[0])
    enter(codec, Phase.EVAL_READY)
    kinds = [type(module).__name__ for module in codec.g_a.quantizers.values()]
    assert kinds.count("WeightQuantizer") == 2 * 3  # the parameter in the product, the kernel
    gains = [q for q in codec.g_a.quantizers.values() if isinstance(q, WeightQuantizer)]
    assert sorted({q.zero_point for q in gains}) == [0, 128]
    sigmoids = [q for name, q in codec.g_a.quantizers.items() if "sigmoid" in name]
    assert [float(q.scale) for q in sigmoids] == [1 / 256] * 3
    copied = copy.deepcopy(codec)
    assert copied.state_dict().keys() == codec.state_dict().keys()
    out = codec.eval().g_a(pictures[0])
    assert torch.equal(copied.eval().g_a(pictures[0]), out)
    assert torch.equal(frozen(codec).g_a(pictures[0]), out)


@pytest.mark.parametrize("block", [Undecided(), Noisy()])
def test_a_block_that_cannot_be_traced_is_quantized_around_and_at_its_layers(
    block: nn.Module, pictures: list[Tensor]
) -> None:
    codec = with_block(block)
    prepare(codec, Quantization("encoder"))
    assert closed_layers(codec) == ["g_a.1", "g_a.3", "g_a.5"]
    for x in pictures:
        step(codec, x)
    enter(codec, Phase.EVAL_READY)
    out = step(codec, pictures[0])
    out["x_hat"].mean().backward()
    quantized = [name for name, q in activation_quantizers(codec)]
    assert "g_a.quantizers.after_0" in quantized
    assert "g_a.quantizers.after_1" in quantized
    if isinstance(block, Undecided):
        assert {"g_a.1.conv.input_quantizer", "g_a.1.conv.output_quantizer"} <= set(quantized)
    copied = copy.deepcopy(codec).eval()
    assert torch.equal(copied.g_a(pictures[0]), codec.eval().g_a(pictures[0]))
    if isinstance(block, Undecided):
        with torch.no_grad():
            copied.g_a.get_submodule("1.conv.output_quantizer").scale.mul_(2)
        assert not torch.equal(copied.g_a(pictures[0]), codec.g_a(pictures[0]))


def test_gdnish_options_do_not_matter_to_tracing(pictures: list[Tensor]) -> None:
    options = vars(GDNishOptions(enc_eca=False, enc_residual=False, dec_residual=False, dec_gmin=0.0))
    chosen = BlockChoice("gdnish", options)
    codec = calibrate(with_tables(Codec(Architecture(N, M, chosen, chosen))), pictures, Quantization("all"))
    assert torch.isfinite(codec(pictures[0])["x_hat"]).all()


@pytest.mark.slow
def test_every_phase_is_one_graph(pictures: list[Tensor]) -> None:
    eager, codec = (make("relu", Quantization("encoder")) for _ in range(2))
    compiled = torch.compile(codec, fullgraph=True, backend="eager")
    keys = noise_keys(0, 0, torch.arange(2))
    for phase in (Phase.CALIBRATION, Phase.FIXED_SCALE, Phase.EVAL_READY):
        for each in (eager, codec):
            enter(each, phase)
        expected, out = eager(pictures[0], keys), compiled(pictures[0], keys)
        torch.testing.assert_close(out["x_hat"], expected["x_hat"], rtol=1e-4, atol=1e-4)
        out["x_hat"].mean().backward()
        if phase is Phase.CALIBRATION:
            learn_ranges(eager)
            learn_ranges(codec)
    with torch.no_grad():
        assert torch.equal(compiled.eval()(pictures[0])["x_hat"], eager.eval()(pictures[0])["x_hat"])
    for name, (low, high) in ranges(codec).items():
        assert ranges(eager)[name] == pytest.approx((low, high), rel=1e-5), name
