"""h_a of a hyperprior in int8: it reads the symbols of y and gives those of z."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from quantized_codecs import M, N, make, step
from torch import Tensor

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import Architecture, Phase, Quantization
from codec.description.typed import from_json
from codec.errors import InputError
from codec.network.hyperprior import HyperpriorCodec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import levels_of
from codec.quantization.phases import enter
from codec.quantization.phases import in_float as in_float_again

ARCH = "bmshj2018_hyperprior"


@pytest.fixture(scope="module")
def in_float() -> HyperpriorCodec:
    """A codec whose z has several symbols, and tables of z that fit 8 bits."""
    codec = make(arch=ARCH)
    with torch.no_grad():
        codec.g_a[6].weight *= 20
        codec.h_a[4].weight *= 3
        for matrix in codec.entropy_bottleneck.matrices:
            matrix += 1.0
        codec.entropy_bottleneck.biases[0] += torch.randn(N, 3, 1)
    return with_tables(codec)


@pytest.fixture(scope="module")
def quantized(in_float: HyperpriorCodec, pictures: list[Tensor]) -> HyperpriorCodec:
    return calibrate(in_float, pictures, Quantization("all", hyper=True))


def test_h_a_reads_the_symbols_of_the_chip_and_gives_symbols(
    in_float: HyperpriorCodec, quantized: HyperpriorCodec, pictures: list[Tensor]
) -> None:
    y = quantized.g_a(pictures[0])
    symbols = y.round().clamp(-128, 127)
    assert torch.equal(quantized.emitted(y), symbols)
    assert torch.equal(in_float.emitted(y), y)
    quantized.y_model.clamped.zero_()
    quantized(pictures[0])
    assert quantized.y_model.clamped.tolist() == [int((y.round() != symbols).sum()), y.numel()]  # rounded once
    z, exact = quantized.h_a(symbols.abs()), in_float.h_a(symbols.abs())
    assert (z - exact).square().mean() < 2e-3 * exact.square().mean()
    model = quantized.entropy_bottleneck
    _, likelihoods, _ = model(z, None)
    assert torch.equal(quantized(pictures[0])["likelihoods"]["z"], likelihoods)
    assert model.symbol_limits == (-128, 127)
    assert len(model.symbols(z).unique()) > 3
    for layer in quantized.h_a.modules():
        if isinstance(layer, QuantizedLayer):
            given = layer.float_weight  # rounded by GPTQ
            torch.testing.assert_close(layer.weight_quantizer(given), given, rtol=1e-6, atol=0)


def test_an_encoder_in_float_gives_h_a_what_it_computed(in_float: HyperpriorCodec, pictures: list[Tensor]) -> None:
    codec = calibrate(in_float, pictures, Quantization("decoder"))
    y = codec.g_a(pictures[0])
    assert torch.equal(codec.emitted(y), y)
    assert codec.y_model.symbol_limits == (-128, 127)  # which its decoder reads
    assert codec.entropy_bottleneck.symbol_limits is None


def test_symbols_that_do_not_fit_are_counted(quantized: HyperpriorCodec) -> None:
    model = copy.deepcopy(quantized).y_model
    y = torch.tensor([-200.0, -128.4, 0.0, 127.4, 300.0]).view(1, 1, 1, 5).expand(1, M, 1, 5)
    for _ in range(2):  # evaluations of a run
        model.clamped.zero_()
        with torch.inference_mode():
            assert model.symbols(y)[0, 0, 0].tolist() == [-128, -128, 0, 127, 127]
        assert model.clamped.tolist() == [2 * M, 5 * M]


def test_it_trains_through_all_phases_and_evaluates_as_one_graph(pictures: list[Tensor]) -> None:
    codec = make(quantization=Quantization("encoder", hyper=True), arch=ARCH)
    for phase in (Phase.CALIBRATION, Phase.FIXED_SCALE, Phase.EVAL_READY):
        enter(codec, phase)
        step(codec, pictures[0])["likelihoods"]["z"].log().mean().backward()
        for part in ("g_a", "h_a"):
            gradient = codec.get_submodule(f"{part}.0")._parameters["weight"].grad
            assert gradient.abs().sum() > 0
            gradient.zero_()
    shipped = with_tables(codec)
    compiled = torch.compile(shipped, fullgraph=True, backend="eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for x in pictures[:2]:
            assert torch.equal(compiled(x)["x_hat"], shipped(x)["x_hat"])


def test_a_checkpoint_and_an_exporters_copy_compute_the_same(
    quantized: HyperpriorCodec, pictures: list[Tensor], tmp_path: Path
) -> None:
    save_codec(tmp_path / "c.safetensors", quantized, Description())
    loaded, _ = load_codec(tmp_path / "c.safetensors")
    assert loaded.architecture == quantized.architecture
    out = quantized(pictures[0])
    for other in (loaded, frozen(quantized)):
        again = other(pictures[0])
        assert torch.equal(again["x_hat"], out["x_hat"])
        assert all(torch.equal(again["likelihoods"][name], out["likelihoods"][name]) for name in ("y", "z"))


def test_y_of_a_codec_with_means_has_levels_and_the_float_codec_stays(pictures: list[Tensor]) -> None:
    plain = make(arch="mbt2018_mean")
    with torch.no_grad():
        plain.g_a[6].weight *= 20
        plain.g_s[0].weight /= 20
    plain = with_tables(plain)
    codec = calibrate(plain, pictures, Quantization("all", hyper=True))
    x, (_, levels) = pictures[0], next(levels_of(codec))
    y, exact = codec.g_a(x), plain.g_a(x)
    integers = y / levels.step.view(-1, 1, 1)
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    assert 60 < (integers.abs() / levels.splits.view(-1, 1, 1)).max() < 128
    assert (y - exact).square().mean() < 2e-3 * exact.square().mean()
    z, exact = codec.h_a(y), plain.h_a(y)
    assert (z - exact).square().mean() < 2e-3 * exact.square().mean()
    y_hat, _, _ = codec.quantize(y, None, False)
    x_hat, exact = codec.g_s(y_hat), plain.g_s(y_hat).clamp(0, 1)
    assert (x_hat - exact).abs().mean() < 0.02
    far = torch.zeros(1, M, 2, 2) + 1e4  # beyond all levels
    assert torch.equal(
        codec.g_s(far), codec.g_s(torch.zeros(1, M, 2, 2) + 127 * (levels.splits * levels.step).view(-1, 1, 1))
    )
    back = in_float_again(codec)
    torch.testing.assert_close(back.g_a[6].bias, plain.g_a[6].bias)
    assert (back.g_s(y_hat).clamp(0, 1) - exact).abs().mean() < 0.02
    again = with_tables(codec)
    assert torch.equal(again(x)["x_hat"], codec(x)["x_hat"])


def test_z_of_a_codec_with_several_rates_is_in_fifths(in_float: HyperpriorCodec, pictures: list[Tensor]) -> None:
    """At the highest rate its symbols are those of a codec of one rate; at a lower one little is lost."""
    plain = copy.deepcopy(in_float)
    plain.add_rates(2, octaves=2.0)
    plain = with_tables(plain)
    codec = calibrate(plain, pictures, Quantization("all", hyper=True))
    model = codec.entropy_bottleneck
    assert model.in_fifths
    z = codec.h_a(codec.seen_by_h_a(codec.g_a(pictures[0])))
    fifths = 5 * model.centred(z)
    torch.testing.assert_close(fifths, fifths.round())
    exact = torch.round(z - model.medians())
    assert torch.equal(model.symbols(z), exact)
    gains = codec.z_gains.coded(torch.tensor([0.0]))
    centred = z - model.medians()
    lost = [
        (torch.round(given * gains.gain) / gains.gain - centred).square().mean()
        for given in (centred, model.centred(z), exact)
    ]
    assert lost[1] < 1.1 * lost[0]
    assert lost[2] > 1.2 * lost[0]  # what whole symbols would lose


def test_rare_symbols_are_clamped_for_fifths_but_not_frequent_ones(quantized: HyperpriorCodec) -> None:
    model = copy.deepcopy(quantized).entropy_bottleneck
    model.is_scaled = True
    symbols = 81  # -40..40, and the escape
    rare, frequent = torch.ones(symbols + 1), torch.ones(symbols + 1)
    rare[symbols // 2] = 2**16 - symbols
    for frequencies, fits in ((rare, True), (frequent, False)):
        cdf = torch.cat([torch.zeros(1), frequencies.cumsum(0)]).int()
        model._quantized_cdf = cdf.expand(model.channels, -1)
        model._offset = torch.full((model.channels,), -40, dtype=torch.int32)
        model._cdf_length = torch.full_like(model._offset, len(cdf))
        model.limit_symbols()
        assert model.symbol_limits is not None
        assert model.in_fifths == fits


def test_metadata_without_hyper_and_impossible_ones() -> None:
    old = asdict(Architecture(N, M, quantization=Quantization("all"), arch=ARCH))
    del old["quantization"]["hyper"]
    read = from_json(Architecture, json.loads(json.dumps(old)), "architecture")
    assert read.quantization == Quantization("all")
    assert read.quantization.transforms == ("g_a", "g_s")
    assert replace(read.quantization, hyper=True).transforms == ("g_a", "h_a", "g_s")
    with pytest.raises(InputError, match="without the encoder"):
        Quantization("decoder", hyper=True)
    with pytest.raises(InputError, match="bmshj2018_factorized does not have"):
        Architecture(N, M, quantization=Quantization("all", hyper=True))
