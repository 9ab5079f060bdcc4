"""`python -m benchmarks.fidelity`: exported files against PyTorch, quality 8, a 768x512 photograph; and the runtime.

Weights are random; the photograph is real. What training adds is seen by `python -m export`, which compares every file.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.deployment import ACTIVATIONS, PARTS, THREADS, random_codec
from benchmarks.harness import Row, publish
from codec.bitstream.tables import to_bytes
from codec.description.architecture import KEEP_GDN, Quantization
from codec.network.codec import Codec
from codec.network.tables import tables_of
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from export.graph.build import build, write
from export.graph.check import runner
from export.measure import executed
from export.pictures import sample_picture

ROUND_TRIPS = 5
ROUND_TRIP = """
import json, sys, time
import numpy as np
start = time.perf_counter()
from pathlib import Path
from PIL import Image
from export.runtime import Model, decode, encode
imported = time.perf_counter() - start
folder = Path(sys.argv[1])
pixels = np.array(Image.open(folder / "x.png"))
encoder, decoder = Model(folder / "enc.onnx", "encoder"), Model(folder / "dec.onnx", "decoder")
decode(encode(pixels, encoder), decoder)
seconds = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    assert decode(encode(pixels, encoder), decoder).shape == pixels.shape
    seconds.append(time.perf_counter() - start)
print(json.dumps({"import": imported, "round trips": seconds, "torch": "torch" in sys.modules}))
"""


@torch.no_grad()
def lively(act: str) -> Codec:
    """A codec of random weights whose blocks do something, where some start as y = x, and whose symbols spread."""
    codec = random_codec(act)
    for transform in (codec.g_a, codec.g_s):
        for block in list(transform)[1::2]:
            for name, parameter in block.named_parameters():
                if "beta" not in name and "gamma" not in name:
                    parameter += 0.1 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    codec.g_a.get_submodule("6").weight *= 20
    codec.g_s.get_submodule("0").weight /= 4
    return codec


@torch.no_grad()
def of_block(act: str, x: Tensor) -> Iterator[Row]:
    """Float and int8 files of a block in both transforms."""
    codec = lively(act)
    medians = codec.y_model.medians()
    y = codec.g_a(x)
    symbols = codec.y_model.symbols(y)
    for part, given, wanted in (("encoder", x, y), ("decoder", symbols + medians, codec.g_s(symbols + medians))):
        (found,) = runner(build(codec, part, "transpose", x))(given)  # type: ignore[arg-type]
        share = np.abs(found - wanted.numpy()).max() / float(wanted.max() - wanted.min())
        yield Row(f"{act} float {part} against PyTorch, largest difference", float(share), "of the range", at_most=1e-4)
    _, y_hat = runner(build(codec, "full", "transpose", x))(x)
    off = np.abs(np.rint(y_hat - medians.numpy()) - symbols.numpy())
    sides = {"largest, symbols": float(off.max()), "symbols' standard deviation": float(symbols.std())}
    yield Row(
        f"{act} float full graph, symbols that differ", float((off > 0).mean()), "of all", at_most=1e-4, sides=sides
    )

    int8 = frozen(calibrate(codec, [sample_picture(224)], Quantization("all")))
    graphs = {part: build(int8, part, "concat", x) for part in PARTS}
    symbols = int8.y_model.symbols(int8.g_a(x))
    (found,) = runner(graphs["encoder"])(x)
    equal = float((found == symbols.numpy()).mean())
    yield Row(f"{act} int8 encoder, symbols equal to the fake-quantized codec's", equal, "of all", at_least=0.999)
    (found,) = runner(graphs["decoder"])(symbols)
    steps = np.abs(found - int8.g_s(symbols + medians).numpy()) * 255
    near = float((steps < 1.5).mean())
    sides = {"mean difference, steps": float(steps.mean())}
    yield Row(
        f"{act} int8 decoder, values within one step of the fake-quantized codec's", near, "of all", 0.99, sides=sides
    )
    run = [executed(graph) for graph in graphs.values()]
    share = sum(one.int8 for one in run) / sum(one.convolutions for one in run)
    bar = None if act == KEEP_GDN else 1.0  # GDN's root and division stay in float
    yield Row(f"{act} int8, convolutions that ONNX Runtime runs in int8", share, "of all", at_least=bar)


def of_runtime(codec: Codec, x: Tensor) -> Row:
    """A round trip without torch, in a process of its own, ReLU in int8."""
    int8 = frozen(calibrate(codec, [sample_picture(224)], Quantization("all")))
    tables = tables_of(int8)
    with TemporaryDirectory() as name:
        for part, file in zip(PARTS, ("enc.onnx", "dec.onnx"), strict=True):
            model = build(int8, part, "concat", x, fingerprint=tables.fingerprint)
            write(Path(name, file), model.SerializeToString(), to_bytes(tables))
        pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(Path(name, "x.png"))
        command = [sys.executable, "-c", ROUND_TRIP, name, str(ROUND_TRIPS)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert not done["torch"], "the runtime has imported torch"
    seconds = median(done["round trips"])
    sides = {"import, s": done["import"], "round trip, s": seconds}
    what = "the torch-free runtime, import and a round trip of 768x512, ReLU int8"
    return Row(what, done["import"] + seconds, "s", at_most=1.0, sides=sides, note="no torch in sys.modules")


def main() -> None:
    """Every block, then the runtime."""
    torch.set_num_threads(THREADS)
    x = sample_picture(768)[:, :, :512]
    rows = [row for act in ACTIVATIONS for row in of_block(act, x)]
    publish("fidelity", [*rows, of_runtime(random_codec("relu"), x)])


if __name__ == "__main__":
    main()
