"""The phases of quantization-aware training: what learns and what is fixed; symbols; checkpoints and copies."""

import copy
from pathlib import Path

import pytest
import torch
from quantized_codecs import M, N, make, ranges, step, step_of_float
from torch import Tensor

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import Architecture, Phase, Quantization
from codec.errors import InputError
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.phases import build, disable_fake_quant, enter, in_float, learn_ranges


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
        layer.set_float_weight(2 * layer.float_weight)
    before = layer.weight_quantizer.scale.clone()
    step(codec, 3 * pictures[0])
    assert torch.equal(layer.weight_quantizer.scale, 2 * before)
    enter(codec, Phase.EVAL_READY)
    with torch.no_grad():
        layer.set_float_weight(layer.float_weight / 2)
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
        codec.g_a.get_submodule("0").set_float_weight(2 * codec.g_a.get_submodule("0").float_weight)
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


def test_symbols_are_clamped_to_8_bits_where_the_tables_fit_in_them(trained: Codec, pictures: list[Tensor]) -> None:
    bottleneck = trained.entropy_bottleneck
    assert bottleneck.symbol_range() == (-215, 215)  # densities that were never trained
    assert bottleneck.symbol_limits is None
    narrow = copy.deepcopy(trained)
    with torch.no_grad():
        for matrix in narrow.entropy_bottleneck.matrices:
            matrix += 0.5
    narrow = with_tables(narrow)
    assert not narrow.y_model.not_int8()
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
