"""`python -m benchmarks.roundings CHECKPOINT.. --images DIR --calib_dir DIR`: what each int8 rounding costs a codec.

Each codec is quantized after its training. Then each tensor and each layer's weights are rounded alone, with all others
in float, and each is restored alone, with all others rounded.
"""

import copy
import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.harness import Row, publish
from codec.checkpoint import open_codec
from codec.description.architecture import Quantization
from codec.evaluation.metrics import bpp
from codec.network.codec import Codec
from codec.network.pixels import to_float
from codec.quantization.calibrate import round_to_grid, with_ranges
from codec.quantization.layers import QuantizedLayer
from codec.quantization.pairs import QuantizedPair
from codec.quantization.phases import tensor_name
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring
from export.pictures import calibration_pictures

BAR, BAR_OF_RELU = 2.0, 0.6
"""The most that int8 may cost, in percent of the RD loss."""

Switch = Callable[[bool], None]


@torch.no_grad()
def rd_loss(codec: Codec, pictures: Sequence[Tensor], lambda_mse: float) -> float:
    """Mean over pictures of lambda 255^2 MSE + estimated bpp."""
    losses = []
    for x in pictures:
        out = codec(x)
        error = (out["x_hat"].clamp(0, 1) - x).square().mean()
        losses.append(lambda_mse * 255**2 * error + bpp(out["likelihoods"], x[0, 0].numel()).mean())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def taken_apart(before: Codec, after: Codec) -> tuple[Codec, dict[str, Switch]]:
    """A codec that computes in float, with a switch for each rounding.

    Args:
        before: with ranges, its weights in float.
        after: the same with rounded weights.
    """
    codec, rounded = copy.deepcopy(before), dict(copy.deepcopy(after).named_modules())
    switches: dict[str, Switch] = {}
    for name, module in codec.named_modules():
        if isinstance(module, QuantizedPair):
            module.in_float = True
        elif isinstance(module, QuantizedLayer):
            other = rounded[name]
            assert isinstance(other, QuantizedLayer)
            module.wiring, other.wiring = Wiring(), Wiring()
            module.weight_quantizer.switches = Switches(learn=False, follow=False)
            switches[f"{name}, weights"] = _weights(module, module.float_weight.clone(), other.weight.clone())
        elif isinstance(module, ActivationQuantizer | WeightQuantizer) and "quantizers." in name:
            module.switches = Switches(learn=False, follow=False)
            switches[tensor_name(name)] = _quantizer(module.switches)
    return codec, switches


def _weights(layer: QuantizedLayer, exact: Tensor, rounded: Tensor) -> Switch:
    def switch(on: bool) -> None:
        layer.set_float_weight(rounded if on else exact)

    return switch


def _quantizer(switches: Switches) -> Switch:
    return lambda on: setattr(switches, "quantize", on)


def of_codec(path: Path, pictures: Sequence[Tensor], photographs: Sequence[Tensor], each: bool) -> Iterator[Row]:
    """What int8 costs a codec, and what each rounding costs."""
    with safe_open(path, "pt") as file:
        lambda_mse = json.loads(file.metadata()["options"])["lambda_mse"]
    codec = open_codec(path)
    before, used = with_ranges(codec, photographs, Quantization("all"))
    after = copy.deepcopy(before)
    round_to_grid(after, used)
    exact = rd_loss(codec, pictures, lambda_mse)
    cost = 100 * (rd_loss(after, pictures, lambda_mse) / exact - 1)
    act = codec.architecture.g_a.name
    what = f"{codec.arch}, {act}, lambda {lambda_mse:g}: RD loss of int8 after {len(used)} photographs against float"
    yield Row(what, cost, "%", at_most=BAR_OF_RELU if act == "relu" else BAR)
    if not each:
        return
    apart, switches = taken_apart(before, after)

    def loss(on: Iterable[str]) -> float:
        chosen = set(on)
        for name, switch in switches.items():
            switch(name in chosen)
        return 100 * rd_loss(apart, pictures, lambda_mse) / exact

    nothing, everything = loss([]), loss(switches)
    for name in switches:
        sides = {"restored alone, %": everything - loss(switches.keys() - {name})}
        yield Row(f"{act}, lambda {lambda_mse:g}: {name} rounded alone", loss([name]) - nothing, "%", sides=sides)


def crops(folder: str, count: int, height: int, width: int) -> list[Tensor]:
    """The middle of evenly spaced pictures of a folder."""
    from codec.evaluation.pictures import open_pictures

    found = [to_float(x) for _, x in open_pictures(folder, None, True, 1).read(0, 1)]
    chosen = found[:: max(1, len(found) // count)][:count]
    tops = [((x.shape[2] - height) // 2, (x.shape[3] - width) // 2) for x in chosen]
    return [x[:, :, i : i + height, j : j + width] for x, (i, j) in zip(chosen, tops, strict=True)]


def main() -> None:
    """The command."""
    parser = ArgumentParser("python -m benchmarks.roundings", description="What each int8 rounding costs a codec.")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="checkpoints of codecs in float")
    parser.add_argument("--images", required=True, help="photographs to measure on")
    parser.add_argument("--calib_dir", required=True, type=Path, help="photographs to quantize with")
    parser.add_argument("--photographs", type=int, default=64, help="how many of these [64]")
    parser.add_argument("--crops", type=int, default=6, help="how many pictures are measured [6]")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 384), help="height and width of these [256 384]")
    parser.add_argument("--total", action="store_true", help="only what int8 costs, not each rounding")
    given = parser.parse_args()
    pictures = crops(given.images, given.crops, *given.size)
    photographs = list(islice(calibration_pictures(given.calib_dir, 224, 224), given.photographs))
    rows = [row for path in given.checkpoints for row in of_codec(path, pictures, photographs, not given.total)]
    publish("roundings", rows)


if __name__ == "__main__":
    main()
