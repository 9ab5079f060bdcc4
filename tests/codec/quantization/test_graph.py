"""Where quantizers go, for the built-in blocks and for any other."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quantized_codecs import M, N, make, step, step_of_float, with_block
from torch import Tensor, nn

from codec.blocks.gdnish import GDNishOptions
from codec.description.architecture import Architecture, BlockChoice, Phase, Quantization
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from codec.quantization.layers import FACTORS, QuantizedLayer
from codec.quantization.phases import activation_quantizers, closed_layers, enter, prepare
from codec.quantization.quantizers import WeightQuantizer


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
    assert all(".quantizers." in key or ".weight_quantizer." in key or key.endswith(FACTORS) for key in added)
    assert [name for name, _ in codec.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(step(codec, pictures[0])["x_hat"], step_of_float(plain, pictures[0]))


@pytest.mark.parametrize(("scope", "parts"), [("encoder", ["g_a"]), ("decoder", ["g_s"]), ("all", ["g_a", "g_s"])])
def test_the_scope_alone_is_quantized(scope: str, parts: list[str]) -> None:
    codec = make("gate", Quantization(scope))
    assert sorted({name.split(".")[0] for name, _ in activation_quantizers(codec)}) == parts
    quantized = {name.split(".")[0] for name, module in codec.named_modules() if isinstance(module, WeightQuantizer)}
    assert sorted(quantized) == parts


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
    codec = calibrate(with_tables(new_codec(Architecture(N, M, chosen, chosen))), pictures, Quantization("all"))
    assert torch.isfinite(codec(pictures[0])["x_hat"]).all()
