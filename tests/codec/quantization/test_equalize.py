"""Cross-layer equalization through blocks."""

import copy

import pytest
import torch
from quantized_codecs import make, with_block
from torch import Tensor, nn

from codec.description.architecture import Quantization
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate, equalize_channels
from codec.quantization.layers import FACTORS
from codec.quantization.phases import prepare


@pytest.fixture(scope="module")
def small(pictures: list[Tensor]) -> list[Tensor]:
    return [x[:1, :, :32, :32] for x in pictures]


@pytest.mark.parametrize("act", ["gate", "gate_mlp", "relu_mlp", "gdnish"])
def test_scales_pass_through_a_block_and_the_float_codec_stays_the_same(act: str, small: list[Tensor]) -> None:
    codec = make(act).eval()
    exact = codec(small[0])["x_hat"]
    prepare(codec, Quantization("all"))
    before = copy.deepcopy(codec.state_dict())
    equalize_channels(codec, small)
    torch.testing.assert_close(codec(small[0])["x_hat"], exact, rtol=1e-4, atol=1e-4)
    moved = {name for name, tensor in codec.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not moved & dict(codec.named_parameters()).keys()  # an optimizer's step stays what it was
    if act != "gdnish":  # its decoder's clamps are reached
        layers = {name.rpartition(".")[0] for name in moved if name.endswith(FACTORS)}
        assert {f"{part}.{i}" for part in ("g_a", "g_s") for i in (0, 2, 4, 6)} <= layers


@pytest.mark.parametrize("act", ["gate", "relu_mlp"])
def test_uneven_channels_of_a_block_cost_less(act: str, small: list[Tensor]) -> None:
    codec = make(act).eval()
    with torch.no_grad():  # as after training: channels of very different ranges
        for i in (2, 4):
            scale = torch.logspace(0, -2, 8)
            codec.g_s[i].weight.mul_(scale.view(1, -1, 1, 1))
            codec.g_s[i].bias.mul_(scale)
            codec.g_s[i + 2].weight.div_(scale.view(-1, 1, 1, 1))
    codec = with_tables(codec)
    y_hat = codec.g_a(small[3]).round()

    def error(quantization: Quantization) -> float:
        int8 = calibrate(codec, small[:3], quantization)
        return float((int8.g_s(y_hat) - codec.g_s(y_hat).clamp(0, 1)).square().mean())

    assert error(Quantization("decoder")) < 0.5 * error(Quantization("decoder", w_per_channel=False))


def test_no_scale_passes_through_a_clamp_whose_bound_is_reached(small: list[Tensor]) -> None:
    codec = with_block(nn.Hardtanh(0.0, 0.01)).eval()
    exact = codec(small[0])["x_hat"]
    prepare(codec, Quantization("all"))
    equalize_channels(codec, small)
    assert torch.equal(codec.g_a.get_submodule("0").output_factor, torch.ones(8))
    torch.testing.assert_close(codec(small[0])["x_hat"], exact, rtol=1e-4, atol=1e-4)
