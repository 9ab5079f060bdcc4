"""`python -m benchmarks.deployment`: every block in ONNX Runtime, float and int8, encoder and decoder.

Weights are random: latency does not depend on them, and quality is not measured here.
"""

import copy
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor

from benchmarks.harness import Row, publish
from codec.description.architecture import Architecture, BlockChoice, Phase, Quantization
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import tables_of, with_tables
from codec.quantization.freeze import frozen
from codec.quantization.layers import QuantizedLayer
from codec.quantization.phases import enter, learn_ranges, prepare
from export.graph.build import build
from export.graph.nodes import macs, read
from export.graph.parts import Part
from export.measure import executed, latencies
from export.pictures import sample_picture

ACTIVATIONS = ("gdn", "relu", "gdnish", "gate", "gate_mlp", "relu_mlp")
PARTS: tuple[Part, ...] = ("encoder", "decoder")
N, M = 192, 320  # quality 8
ROUNDS = 5
THREADS = 2  # one for each core
GDN_FLOAT, RELU_INT8 = "gdn float", "relu int8"


def random_codec(act: str, n: int = N, m: int = M) -> Codec:
    """A codec of these widths with entropy tables narrow enough that the latent is 8 bits, as a trained codec's are."""
    torch.manual_seed(0)
    activation = BlockChoice(act)
    codec = new_codec(Architecture(n, m, activation, activation))
    with torch.no_grad():
        for matrix in codec.entropy_bottleneck.matrices:
            matrix += 1.0
    return with_tables(codec)


def graphs(
    x: Tensor, acts: Sequence[str] = ACTIVATIONS, precisions: Sequence[str] = ("float", "int8")
) -> dict[str, dict[Part, onnx.ModelProto]]:
    """Encoder and decoder by activation and precision: float with its transposed convolutions, int8 without them."""
    made = {}
    for act in acts:
        codec = random_codec(act)
        if "float" in precisions:
            made[f"{act} float"] = {part: build(codec, part, "transpose", x) for part in PARTS}
        if "int8" in precisions:
            int8 = frozen(with_ranges(codec))
            made[f"{act} int8"] = {part: build(int8, part, "concat", x) for part in PARTS}
    return made


@torch.no_grad()
def with_ranges(codec: Codec, hyper: bool = False) -> Codec:
    """A copy in int8 with the ranges of one picture; nothing that improves its quality, which takes minutes.

    Args:
        hyper: h_a too.
    """
    quantized: Codec = copy.deepcopy(codec).eval()
    quantized.calibrated_tables = tables_of(codec)
    prepare(quantized, Quantization("all", phase=Phase.CALIBRATION, hyper=hyper))
    quantized(sample_picture(224))
    learn_ranges(quantized)
    enter(quantized, Phase.EVAL_READY)
    for layer in quantized.modules():
        if isinstance(layer, QuantizedLayer):
            layer.update_weight_scale()
    return quantized


def measure(made: Mapping[str, Mapping[Part, onnx.ModelProto]]) -> dict[str, float]:
    """Milliseconds of each graph, all of them in turn."""
    return latencies({f"{name} {part}": each[part] for name, each in made.items() for part in PARTS}, THREADS, ROUNDS)


def main() -> None:
    """Both sizes; a row for each activation and precision, and the bar."""
    torch.set_num_threads(THREADS)
    large, small = graphs(sample_picture(768)[:, :, :512]), graphs(sample_picture(224))
    at_large, at_small = measure(large), measure(small)
    rows, totals = [], {name: sum(at_large[f"{name} {part}"] for part in PARTS) for name in large}
    for name, each in large.items():
        sides = {f"{part}, ms": at_large[f"{name} {part}"] for part in PARTS}
        sides |= {f"{part} of 224x224, ms": at_small[f"{name} {part}"] for part in PARTS}
        sides |= {f"{part}, GMAC": macs(read(each[part])) / 1e9 for part in PARTS}
        run = [executed(each[part]) for part in PARTS]
        note = f"{sum(one.int8 for one in run)} of {sum(one.convolutions for one in run)} convolutions in int8"
        what = f"{name}, encoder and decoder of 768x512 in ONNX Runtime"
        rows.append(Row(what, totals[name], "ms", sides=sides, note=note))
    sides = {f"{name}, ms": totals[name] for name in (GDN_FLOAT, RELU_INT8)}
    what = "ReLU in int8 against GDN in float, encoder and decoder of 768x512 in ONNX Runtime"
    rows.append(Row(what, totals[GDN_FLOAT] / totals[RELU_INT8], "x", at_least=5, sides=sides))
    publish("deployment", rows, {"N": N, "M": M, "threads of ONNX Runtime": THREADS, "rounds": ROUNDS})


if __name__ == "__main__":
    main()
