"""Measures exported graphs in ONNX Runtime: nodes in int8, latency, and quality on pictures."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.evaluation.coded import through_files
from codec.evaluation.figures import means, sums_and_counts
from codec.evaluation.pictures import open_pictures
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from export.graph.check import optimized, runner
from export.graph.levels import on_host
from export.graph.parts import Part
from export.runtime import session_options
from export.runtime.openvino import OpenVinoSession
from export.runtime.session import BACKENDS

CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
MOVES_ONLY = ("Reshape", "Transpose", "Concat", "Slice", "Split", "DepthToSpace", "Squeeze", "Unsqueeze")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Executed:
    """The operations that ONNX Runtime executes on a CPU.

    Attributes:
        int8: number of convolutions in int8.
        convolutions: number of all convolutions.
        in_float: operator and name of every node that computes in float.
    """

    int8: int
    convolutions: int
    in_float: list[tuple[str, str]]


def executed(model: onnx.ModelProto) -> Executed:
    """Reads ONNX Runtime's optimized graph, which is the graph that runs."""
    nodes = optimized(model)
    int8 = sum(node.op_type == "QLinearConv" for node in nodes)
    floats = [
        (node.op_type, node.name)
        for node in nodes
        if not node.op_type.startswith("QLinear") and node.op_type not in (*MOVES_ONLY, *QUANTIZERS)
    ]
    return Executed(int8, int8 + sum(kind in CONVOLUTIONS for kind, _ in floats), floats)


def latencies(
    models: Mapping[str, onnx.ModelProto], threads: int, rounds: int, backend: str = BACKENDS[0]
) -> dict[str, float]:
    """Median milliseconds of an inference of every model. The models run in turn; the first round is not counted."""
    runs = {name: _inference(model, threads, backend) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(each[1:]) for name, each in seconds.items()}


def quality(codecs: Mapping[str, Codec], images: Path) -> dict[str, dict[str, float]]:
    """Mean PSNR, MS-SSIM and bits per pixel of every codec over pictures, from compressed files that are decoded again.

    Raises:
        InputError: there is no picture.
    """
    pictures = open_pictures(str(images), None, True, 1)
    figures = {}
    for name, codec in codecs.items():
        decoded = through_files(FileCodec(codec), pictures.read(0, 1))
        figures[name] = means(sums_and_counts([each.figures for each in decoded]))
    return figures


def in_onnx(codec: Codec, graphs: Mapping[Part, onnx.ModelProto]) -> Codec:
    """A copy of the codec whose transforms are the graphs of these parts in ONNX Runtime, which accept any size."""
    shipped = copy.deepcopy(codec)
    medians = codec.y_model.medians()
    g_a, g_s = (on_host(codec, part) for part in ("g_a", "g_s"))
    shipped.g_a = _Graph(graphs["encoder"], after=[*g_a, _Plus(medians)] if codec.has_symbols("g_a") else g_a)
    shipped.g_s = _Graph(graphs["decoder"], before=[_Plus(-medians), *g_s] if codec.has_symbols("g_s") else g_s)
    if isinstance(shipped, HyperCodec):
        centre = _Plus(codec.entropy_bottleneck.medians())
        shipped.h_a = _Graph(graphs["h_a"], before=on_host(codec, "h_a"), after=[centre])
    return shipped


class _Plus(nn.Module):
    def __init__(self, summand: Tensor) -> None:
        super().__init__()
        self.summand = summand

    def forward(self, x: Tensor) -> Tensor:
        return x + self.summand


class _Graph(nn.Module):
    """A graph as a transform, between what the host computes before and after it."""

    def __init__(
        self, model: onnx.ModelProto, before: Sequence[nn.Module] = (), after: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.run, self.before, self.after = runner(model), nn.Sequential(*before), nn.Sequential(*after)

    def forward(self, value: Tensor) -> Tensor:
        (found,) = self.run(self.before(value))
        result: Tensor = self.after(torch.from_numpy(found))
        return result


def _inference(model: onnx.ModelProto, threads: int, backend: str) -> Callable[[], Sequence[NDArray[Any]]]:
    options = session_options()
    options.intra_op_num_threads = threads
    data, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    if backend == "openvino":
        session = OpenVinoSession(data, Path("graph"), threads)
    else:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    (entry,) = session.get_inputs()
    draw = np.random.default_rng(0)
    if entry.type == "tensor(uint8)":
        example = draw.integers(0, 256, entry.shape).astype(np.uint8)
    else:
        example = draw.random(entry.shape, np.float32)
    return lambda: session.run(None, {entry.name: example})
