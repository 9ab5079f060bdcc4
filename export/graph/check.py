"""Compares ONNX Runtime with PyTorch on a real picture; every exported file must pass before it is written."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.bitstream.hyper_coder import FIFTH
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.quantization.splits import together
from export.graph.levels import in_levels
from export.graph.parts import Part
from export.runtime import SYMBOL_ZERO, session_options
from export.runtime.session import FIFTHS

Array = NDArray[np.float32]

RANGE_TOLERANCE = 1e-4
"""Largest allowed difference of a float tensor, as a share of its range."""
FLIPPED_FLOAT, FLIPPED_INT8 = 1e-4, 1e-2
"""Share of symbols that may differ by 1 because of rounding. With our own blocks, one in 10^5 differs in int8. A user's
block may have more float operations; a value that rounds differently there changes everything after it."""
WITHIN_ONE_STEP, MEAN_STEPS = 0.99, 0.1
"""For an int8 picture: share of values within one step of its scale, and mean difference in steps."""


@dataclass(frozen=True)
class Check:
    """Whether two results agree, and the difference in words."""

    passed: bool
    words: str


@torch.no_grad()
def compare(model: onnx.ModelProto, codec: Codec, part: Part, x: Tensor) -> Check:
    """Compares the graph of a part with the codec's modules.

    Args:
        codec: in eval mode, without rewrites; float or from `codec.quantization.freeze.frozen`.
        x: [1, 3, H, W].
    """
    run = runner(model)
    y, medians = codec.g_a(x), codec.y_model.medians()
    if part == "encoder":
        (latent,) = run(x)
        if not codec.is_quantized("g_a"):
            return _in_range("y", latent, y)
        if codec.has_levels("g_a"):
            levels = together(torch.from_numpy(latent), codec.g_a.levels.splits)
            return _symbols(levels.numpy(), y / codec.g_a.levels.step.view(-1, 1, 1), FLIPPED_INT8)
        ours = latent if codec.has_symbols("g_a") else np.rint(latent - medians.numpy())
        return _symbols(ours, codec.y_model.symbols(y), FLIPPED_INT8)
    if part == "h_a":
        assert isinstance(codec, HyperCodec)
        seen = codec.seen_by_h_a(codec.emitted(y))
        (latent,) = run(in_levels(codec, "h_a", seen))
        z, z_model = codec.h_a(seen), codec.entropy_bottleneck
        if not codec.is_quantized("h_a"):
            return _in_range("z", latent, z - z_model.medians())
        ours = latent if codec.has_symbols("h_a") else np.rint(latent)
        return _symbols(ours, z_model.centred(z) if codec.has_symbols("h_a") else z_model.symbols(z), FLIPPED_INT8)
    if part == "decoder":
        symbols = codec.y_model.symbols(y)
        (x_hat,) = run(symbols if codec.has_symbols("g_s") else in_levels(codec, "g_s", symbols + medians))
        return _picture(x_hat, codec.g_s(symbols + medians), codec.is_quantized("g_s"))
    x_hat, latent = run(x)
    y_hat = torch.from_numpy(latent) + medians if codec.has_symbols("g_a") else torch.from_numpy(latent)
    flipped = FLIPPED_INT8 if codec.is_quantized("g_a") else FLIPPED_FLOAT
    of_y = _symbols(y_hat.numpy(), _y_hat(codec, y), flipped)
    of_x = _picture(x_hat, codec.g_s(y_hat), codec.is_quantized("g_s"))
    return Check(of_y.passed and of_x.passed, f"{of_y.words}, {of_x.words}")


def _y_hat(codec: Codec, y: Tensor) -> Tensor:
    """y_hat as the full graph computes it: with the means of h_s in float, where files have those in integers."""
    if not isinstance(codec, HyperCodec):
        return codec.quantize(y, None, False)[0]
    z = codec.h_a(codec.seen_by_h_a(codec.emitted(y)))
    y_hat: Tensor = codec.y_model(y, *codec.predict(codec.entropy_bottleneck(z)[0], y))[0]
    return y_hat


def runner(model: onnx.ModelProto) -> Callable[[Tensor], list[Array]]:
    """A function from the model's input to its outputs, as real values also where the model has integers."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    (entry,) = session.get_inputs()

    def run(value: Tensor) -> list[Array]:
        real: Array = value.numpy()
        if entry.type == "tensor(uint8)":
            scale, zero = grid(entry.name)
            real = np.clip(np.rint(real / np.float32(scale) + zero), 0, 255).astype(np.uint8)
        outputs = session.run(None, {entry.name: real})
        names = [each.name for each in session.get_outputs()]
        return [_real(name, each) for name, each in zip(names, outputs, strict=True)]

    return run


def grid(name: str) -> tuple[float, int]:
    """Scale and zero point of an 8-bit input or output; that of a picture is 1/255."""
    grids = {"symbols": (1.0, SYMBOL_ZERO), "levels": (1.0, SYMBOL_ZERO), "magnitudes": (1.0, 0)}
    grids |= {"magnitude_levels": grids["levels"], FIFTHS: (FIFTH, SYMBOL_ZERO)}
    return grids.get(name, (1 / 255, 0))


def _real(name: str, value: NDArray[np.generic]) -> Array:
    if value.dtype != np.uint8:
        return value.astype(np.float32)
    scale, zero = grid(name)
    return ((value.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)


def optimized(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of ONNX Runtime's optimized graph, which runs on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(onnx.load(options.optimized_model_filepath).graph.node)


def _in_range(name: str, ours: Array, torchs: Tensor) -> Check:
    theirs = torchs.numpy()
    share = float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))
    words = f"{name} differs by {share:.1e} of its range at most ({RANGE_TOLERANCE:.0e} allowed)"
    return Check(share <= RANGE_TOLERANCE, words)


def _symbols(ours: Array, theirs: Tensor, tolerance: float) -> Check:
    """Compares symbols, or y_hat, whose means differ by float rounding. One symbol may always differ."""
    difference = np.rint(np.abs(ours - theirs.numpy()))
    share, most = float((difference > 0).mean()), float(difference.max())
    words = f"{share:.1e} of the symbols differ ({tolerance:.0e} allowed), by {most:.0f} at most"
    return Check(share <= max(tolerance, 1 / difference.size) and most <= 1, words)


def _picture(ours: Array, theirs: Tensor, quantized: bool) -> Check:
    if not quantized:
        return _in_range("x_hat", ours, theirs)
    steps = np.abs(ours - theirs.numpy()) * 255
    close, mean = float((steps < 1.5).mean()), float(steps.mean())
    words = f"{close:.3%} of x_hat within one step of its scale, {mean:.3f} steps off on average"
    return Check(close >= WITHIN_ONE_STEP and mean < MEAN_STEPS, words)
