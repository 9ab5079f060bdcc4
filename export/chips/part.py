"""A part of a quantized codec in the forms that compilers take, and ONNX Runtime's result to compare theirs with."""

from functools import cache, cached_property

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.network.codec import Codec
from codec.quantization.levels import Levels
from codec.quantization.splits import together
from export.graph import build
from export.graph.check import grid
from export.graph.parts import Exportable, Part, exportable
from export.graph.rewrite import Deconv
from export.runtime import session_options
from export.runtime.session import FIFTHS, SYMBOL_ZERO

Bytes = NDArray[np.uint8]


class QuantizedPart:
    """A part of a codec from `codec.quantization.freeze.frozen`.

    Args:
        x: a photograph [1, 3, H, W] in [0, 1]; the graphs have its size.
    """

    def __init__(self, codec: Codec, name: Part, x: Tensor) -> None:
        self.codec, self.name, self.x = codec, name, x
        self.graph, self.module = cache(self._graph), cache(self._module)

    def _graph(self, deconv: Deconv) -> onnx.ModelProto:
        return build.build(self.codec, self.name, deconv, self.x)

    def _module(self, deconv: Deconv) -> Exportable:
        return exportable(self.codec, self.name, deconv, self.x)

    @cached_property
    def example(self) -> Bytes:
        """The part's 8-bit input [1, C, h, w] for the photograph."""
        ready = self.module("concat")
        scale, zero = grid(ready.inputs[0])
        return np.asarray((ready.example / scale + zero).round().clamp(0, 255).byte().numpy())

    @cached_property
    def output(self) -> Bytes:
        """ONNX Runtime's 8-bit output for it."""
        return run(self.graph("concat"), self.example)

    @property
    def values(self) -> str:
        """What the output holds: symbols, levels, fifths of symbols, or bytes of the picture."""
        name: str = self.graph("concat").graph.output[0].name
        return "bytes" if self.name == "decoder" else "fifths of symbols" if name == FIFTHS else name

    def rounded(self, levels: Bytes) -> NDArray[np.float32]:
        """The whole numbers that the chip's levels of y [1, channels, h, w] stand for.

        These are the symbols at the highest rate, without means.
        """
        of_y: Levels = self.codec.g_a.levels
        whole = together(torch.from_numpy(levels.astype(np.float32)) - SYMBOL_ZERO, of_y.splits)
        y: NDArray[np.float32] = of_y(whole).round().numpy()
        return y

    def psnr(self, picture: Bytes) -> float:
        """PSNR in dB of a decoder's output [1, 3, H, W] against the photograph."""
        error = picture / 255 - self.x.numpy()
        return round(-10 * float(np.log10(np.square(error).mean())), 2)


def run(model: onnx.ModelProto, value: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The output of a graph with one input and one output in ONNX Runtime on the CPU."""
    options, providers = session_options(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    found: NDArray[np.uint8] = session.run(None, {session.get_inputs()[0].name: value})[0]
    return found
