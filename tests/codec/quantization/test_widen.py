"""Activations of 16 bits: their grid, the conversions beside them, what a checkpoint keeps, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from quantized_codecs import make, step
from torch import Tensor

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import ARCHITECTURES, Architecture, Phase, Quantization
from codec.errors import InputError
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.graph import QuantizedTransform
from codec.quantization.layers import QuantizedLayer
from codec.quantization.phases import enter, prepare, wide_activations
from codec.quantization.quantizers import ActivationQuantizer, Widened

ONE = Quantization("all", a16="g_s.after_5")


def test_a_tensor_of_16_bits_has_65535_levels(pictures: list[Tensor]) -> None:
    codec = calibrate(with_tables(make("relu")), pictures, ONE)
    assert wide_activations(codec, "g_a", "g_s") == ["g_s.after_5"]
    wide, narrow = (codec.g_s.get_submodule(f"quantizers.after_{i}") for i in (5, 3))
    assert isinstance(wide, ActivationQuantizer)
    torch.testing.assert_close(wide.scale * 65534, 2 * torch.maximum(wide.high, -wide.low))
    assert int(wide.zero_point) == 0
    spread = torch.linspace(-1, 1, 10**6) * wide.high
    assert len(wide(spread).unique()) == 65535
    assert len(narrow(spread).unique()) <= 256


def test_rounding_one_tensor_to_16_bits_costs_less_than_to_8(pictures: list[Tensor]) -> None:
    codec = with_tables(make("gate_mlp")).eval()
    wide = calibrate(codec, pictures, Quantization("decoder", a16="g_s.*"))
    narrow = calibrate(codec, pictures, Quantization("decoder"))
    y_hat = codec.quantize(codec.g_a(pictures[0]), None, False)[0]
    exact = codec.g_s(y_hat)
    for each in (wide, narrow):
        each.g_s.get_submodule("quantizers.after_6").switches.in_eval = True
    errors = [float((each.g_s(y_hat) - exact).square().mean()) for each in (wide, narrow)]
    assert errors[0] < errors[1]


def types(transform: QuantizedTransform) -> dict[str, set[int]]:
    """The bits of the quantizers around each convolution, sum and product that 16-bit tensors are beside."""
    found = {}
    for name, module in transform.named_modules():
        wiring = getattr(module, "wiring", None)
        around = [*wiring.inputs, wiring.output] if wiring else []
        bits = {each.bits for each in around if each is not None}
        if 16 in bits:
            found[name] = bits
    return found


@pytest.mark.parametrize("act", ["relu", "relu_mlp", "gate", "gate_mlp", "gdnish"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_operations_beside_16_bits_have_one_type(act: str, arch: str) -> None:
    codec = make(act, arch=arch)
    names = [name for name in _names(codec.architecture) if not name.endswith("_0")]
    for glob in names[:: max(1, len(names) // 4)]:
        codec = make(act, Quantization("all", a16=glob), arch=arch)
        found = types(codec.g_a) | types(codec.g_s)
        assert found
        assert all(bits == {16} for bits in found.values()), (glob, found)


def _names(architecture: Architecture) -> list[str]:
    with pytest.raises(InputError) as error:
        prepare(make(architecture.g_a.name, arch=architecture.arch), Quantization("all", a16="nothing"))
    return str(error.value).split("there are ")[1].split(", ")


def test_the_sums_of_16_bit_inputs_are_exact(pictures: list[Tensor]) -> None:
    """float32 cannot hold them: the same integers in float64 are what a chip adds."""
    codec = calibrate(with_tables(make("relu")), pictures, Quantization("all", a16="g_a.*"))
    layer = codec.g_a.get_submodule("2")
    assert isinstance(layer, QuantizedLayer)
    source, output = layer.wiring.inputs[0], layer.wiring.output
    assert isinstance(source, ActivationQuantizer)
    assert output is not None
    x = torch.rand(1, 8, 32, 32) * source.high
    x = source(x)
    integers = (x.double() / source.scale).round()
    weight = (
        layer.weight_quantizer(layer.float_weight).double() / layer.weight_quantizer.scale_along(layer.float_weight)
    ).round()
    assert layer.float_bias is not None
    unit = source.scale * layer.weight_quantizer.scale
    bias = (layer.float_bias / unit).round().double()
    sums = torch.nn.functional.conv2d(integers, weight, bias, layer.stride, layer.padding)
    expected = (sums * (unit / output.scale).view(-1, 1, 1)).round() * output.scale
    assert torch.equal(layer(x), expected.float())
    assert sums.abs().max() > 2**24


def test_a_converted_operand_keeps_its_values_and_a_result_its_step(pictures: list[Tensor]) -> None:
    codec = calibrate(with_tables(make("relu")), pictures, ONE)
    wide = codec.g_s.get_submodule("widened.after_3")
    assert isinstance(wide, Widened)
    values = wide.narrow(torch.randn(1, 8, 64, 64) * wide.narrow.high)
    torch.testing.assert_close(wide(values), values, rtol=1e-6, atol=0)
    assert torch.equal(wide.integers(values), wide.narrow.integers(values) * 127)
    anything = torch.rand(1, 8, 64, 64) * wide.narrow.high
    twice, once = wide.narrow(wide(anything)), wide.narrow(anything)
    assert (twice == once).float().mean() > 0.98
    assert (twice - once).abs().max() <= 1.01 * wide.narrow.scale


def test_it_trains_and_the_phases_change_nothing_but_the_ranges(pictures: list[Tensor]) -> None:
    codec = make("gate_mlp", Quantization("all", a16="g_s.after_add_2,g_a.after_mul"))
    step(codec, pictures[0])
    enter(codec, Phase.FIXED_SCALE)
    assert codec.g_s.get_submodule("quantizers.after_add_2").scale > 0
    out = step(codec, pictures[1])["x_hat"]
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.g_s.parameters())
    assert codec.architecture.quantization == Quantization(
        "all", a16="g_s.after_add_2,g_a.after_mul", phase=Phase.FIXED_SCALE
    )


def test_a_checkpoint_keeps_them(pictures: list[Tensor], tmp_path: Path) -> None:
    codec = calibrate(with_tables(make("relu")), pictures, ONE)
    save_codec(tmp_path / "a.safetensors", codec, Description())
    opened, _ = load_codec(tmp_path / "a.safetensors")
    assert opened.architecture == codec.architecture
    assert wide_activations(opened, "g_a", "g_s") == ["g_s.after_5"]
    assert torch.equal(opened(pictures[0])["x_hat"], codec(pictures[0])["x_hat"])


def test_a_checkpoint_without_them_is_as_it_was_before_there_were_any(pictures: list[Tensor], tmp_path: Path) -> None:
    codec = calibrate(with_tables(make("relu")), pictures, Quantization("all"))
    save_codec(tmp_path / "a.safetensors", codec, Description())
    assert "a16" not in (tmp_path / "a.safetensors").read_bytes().decode("latin-1")
    assert "a16" in json.dumps(Architecture(8, 8, quantization=ONE).as_dict())
    assert not any("widened" in name for name, _ in codec.named_modules())


@pytest.mark.parametrize("glob", ["g_s.after_9", "g_s.input", "g_s.after_6", "g_s.after_5,none", ""])
def test_a_glob_that_matches_no_tensor_is_refused_with_all_names(glob: str) -> None:
    """Also one of a tensor with a given range: pictures and latents have 8 bits."""
    if not glob:
        assert not wide_activations(make("relu", Quantization("all", a16=glob)), "g_a", "g_s")
        return
    names = ", ".join(f"g_{part}.after_{i}" for part in "as" for i in (1, 3, 5))
    says = f"a16 {glob.split(',')[-1]}: no quantized activation has this name; there are {names}"
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        make("relu", Quantization("all", a16=glob))
