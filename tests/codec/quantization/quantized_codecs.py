"""Small codecs for the tests of quantization, and a step of their training."""

import copy

import torch
from torch import Tensor, nn

from codec.blocks import make_options, options_dict
from codec.description.architecture import DEFAULT_ARCH, Architecture, BlockChoice, Quantization
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.quantization.phases import activation_quantizers, learn_ranges, prepare

N, M = 8, 12


def make(act: str = "relu", quantization: Quantization | None = None, arch: str = DEFAULT_ARCH) -> Codec:
    """A codec of random weights whose blocks do something."""
    torch.manual_seed(0)
    chosen = BlockChoice() if act == "gdn" else BlockChoice(act, options_dict(act, make_options(act, {})))
    codec = new_codec(Architecture(N, M, chosen, chosen, arch=arch))
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


def step(codec: Codec, x: Tensor) -> dict[str, Tensor]:
    """A forward of training, and the range learning that ends a step of the calibration."""
    out = codec(x, noise_keys(0, 0, torch.arange(len(x))))
    quantization = codec.architecture.quantization
    if quantization and quantization.learns_ranges:
        learn_ranges(codec)
    return out


def step_of_float(codec: Codec, x: Tensor) -> Tensor:
    return codec(x, noise_keys(0, 0, torch.arange(len(x))))["x_hat"]


def ranges(codec: Codec) -> dict[str, tuple[float, float]]:
    return {name: (float(q.low), float(q.high)) for name, q in activation_quantizers(codec)}


def with_block(block: nn.Module) -> Codec:
    codec = make("relu")
    for i in (1, 3, 5):
        codec.g_a[i] = copy.deepcopy(block)
    return codec
