"""Small codecs for the export's tests: random, but with a latent that has something to code."""

from pathlib import Path

import torch
from torch import Tensor

from codec.bitstream.tables import to_bytes
from codec.checkpoint import Description, save_codec
from codec.description.architecture import DEFAULT_ARCH, Architecture, BlockChoice, Quantization
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import tables_of, with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from export.graph.build import build, parts_of, write_all
from export.graph.parts import Part

PARTS: tuple[Part, ...] = ("encoder", "decoder")


def make(
    act: str, options: dict | None = None, N: int = 8, M: int = 12, spread: float = 8.0, arch: str = DEFAULT_ARCH
) -> Codec:
    """A codec with this block in both transforms, medians off zero, and tables whose symbols fit 8 bits."""
    torch.manual_seed(0)
    activation = BlockChoice(act, options or {})
    codec = new_codec(Architecture(N, M, activation, activation, arch=arch))
    with torch.no_grad():
        for transform in (getattr(codec, name) for name in ("g_a", "g_s", "h_a", "h_s") if hasattr(codec, name)):
            for parameter in transform.parameters():
                parameter += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
        codec.g_a[6].weight *= spread
        codec.g_s[6].bias += 0.5
        for matrix in codec.entropy_bottleneck.matrices:
            matrix += 1.0  # narrower densities than CompressAI starts with
        channels = codec.entropy_bottleneck.channels
        codec.entropy_bottleneck.biases[0] += torch.randn(channels, 3, 1)
        if arch != DEFAULT_ARCH:  # which has no medians that make y something to code
            codec.g_a[6].weight *= 12
            codec.g_s[0].weight /= 12
    return with_tables(codec)


def make_of_rates(rates: int, arch: str) -> Codec:
    """One with several rates; with a hyperprior y has channels of 2, 4 and 8 splits in int8."""
    codec = make("relu", arch=arch)
    if arch != DEFAULT_ARCH:
        with torch.no_grad():
            for channel, factor in ((1, 20.0), (4, 24.0), (5, 60.0)):
                codec.g_a[6].weight[channel] *= factor
                for weight in (codec.g_s[0].weight, codec.h_a[0].weight.transpose(0, 1)):
                    weight[channel] /= factor
    codec.add_rates(rates, octaves=2.0)
    return with_tables(codec)


def in_int8(codec: Codec, x: Tensor) -> Codec:
    """Quantized on this picture, frozen."""
    return frozen(calibrate(codec, [x], Quantization("all", hyper=hasattr(codec, "h_a"))))


def exported(folder: Path, name: str, arch: str, precision: str, rates: int, picture: Tensor) -> tuple[Path, Path]:
    """The files of an encoder and a decoder with ReLU, for pictures of any size, "float" or "int8"."""
    codec = make_of_rates(rates, arch) if rates > 1 else make("relu", arch=arch)
    codec = in_int8(codec, picture[..., :128, :128]) if precision == "int8" else codec
    tables, x = tables_of(codec), picture[..., :96, :96]
    paths = folder / f"{name}encoder.onnx", folder / f"{name}decoder.onnx"
    for part, path in zip(PARTS, paths, strict=True):
        graphs = {
            each: build(codec, each, "concat", x, dynamic=True, fingerprint=tables.fingerprint)
            for each in parts_of(codec, part)
        }
        write_all(path, graphs, to_bytes(tables))
    return paths


def trained(act: str, scope: str, x: Tensor, N: int = 8) -> Codec:
    """A codec as quantization-aware training of this scope leaves it."""
    return calibrate(make(act, N=N), [x], Quantization(scope))


def save(codec: Codec, path: Path) -> Path:
    save_codec(path, codec, Description())
    return path
