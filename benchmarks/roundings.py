"""`python -m benchmarks.roundings CHECKPOINT.. --images DIR`: what each int8 rounding costs a codec.

A codec in float is quantized after its training, on the photographs of `--calib_dir`. Of a codec in int8, the weights
stay on their grid. Then each tensor, and of the former each layer's weights, is rounded alone, with all others in
float, and restored alone, with all others rounded. The embedded codec's name is `sample`.
"""

import copy
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Row, publish
from codec.checkpoint import load_codec
from codec.description.architecture import Quantization
from codec.evaluation.metrics import bpp
from codec.network.codec import Codec
from codec.network.pixels import to_float
from codec.quantization.calibrate import round_to_grid, with_ranges
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import levels_of, set_steps
from codec.quantization.pairs import QuantizedPair
from codec.quantization.phases import tensor_name
from codec.quantization.quantizers import ActivationQuantizer, Switches, WeightQuantizer, Wiring
from codec.sample import to_use
from export.pictures import calibration_pictures
from training.objective import RateDistortion

BAR, BAR_OF_RELU = 2.0, 0.6
"""The most that int8 may cost, in percent of the RD loss."""

RATES = (0.0, 0.5, 1.0)
"""Those at which a codec of several rates is measured."""

WEIGHTS = ", weights"
"""Ends the name of a layer's weights in a table."""

Switch = Callable[[bool], None]


@dataclass(frozen=True)
class Measured:
    """A codec and where it is measured.

    Attributes:
        codec: as its file has it.
        lambdas: the lambda that it was trained with, as the option says it.
        points: the rate, None if there is but one, and the lambda of each point.
    """

    codec: Codec
    lambdas: str
    points: list[tuple[float | None, float]]

    @classmethod
    def open(cls, checkpoint: str) -> "Measured":
        """Opens a checkpoint, or an embedded codec."""
        codec, description = load_codec(to_use(checkpoint))
        weight = description.options["lambda_mse"]
        points: list[tuple[float | None, float]]
        if isinstance(weight, str):
            lambdas = RateDistortion(loss_type="mse", lambda_mse=weight).lambdas(torch.tensor(RATES)).tolist()
            points = list(zip(RATES, lambdas, strict=True))
        else:
            assert weight is not None  # every run has one
            points = [(None, float(weight))]
        return cls(codec, f"{weight}", points)

    @property
    def name(self) -> str:
        """The block and the lambda, for a row."""
        return f"{self.codec.architecture.g_a.name}, lambda {self.lambdas}"

    def losses(self, codec: Codec, pictures: Sequence[Tensor]) -> Tensor:
        """The RD loss of each point."""
        return torch.tensor([rd_loss(codec, pictures, *point) for point in self.points])


@torch.no_grad()
def rd_loss(codec: Codec, pictures: Sequence[Tensor], rate: float | None, lambda_mse: float) -> float:
    """Mean over pictures of lambda 255^2 MSE + estimated bpp."""
    losses = []
    for x in pictures:
        out = codec(x, rates=None if rate is None else torch.tensor([rate]))
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
            switches[f"{name}{WEIGHTS}"] = _weights(module, module.float_weight.clone(), other.weight.clone())
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


def of_codec(checkpoint: str, pictures: Sequence[Tensor], photographs: Sequence[Tensor], each: bool) -> Iterator[Row]:
    """What int8 costs a codec, and what each rounding costs."""
    measured = Measured.open(checkpoint)
    if measured.codec.architecture.quantization is None:
        yield from _of_float(measured, pictures, photographs, each)
    else:
        apart, switches = taken_apart(measured.codec, measured.codec)
        tensors = {name: switch for name, switch in switches.items() if not name.endswith(WEIGHTS)}
        for name, switch in switches.items():
            switch(name not in tensors)
        exact = _with(apart, measured, pictures, tensors, [])
        rounded = measured.losses(measured.codec, pictures)
        what = f"{measured.codec.arch}, {measured.name}: RD loss of int8 after training, against its tensors in float"
        yield Row(what, _more(rounded, exact), "%", sides=_of_points(measured, rounded, exact))
        if each:
            everything = _with(apart, measured, pictures, tensors, tensors)
            for part in measured.codec.architecture.quantization.transforms:
                outside = [name for name in tensors if not name.startswith(f"{part}.")]
                restored = _with(apart, measured, pictures, tensors, outside)
                yield Row(f"{measured.name}: all of {part} restored", _more(restored, everything), "%")
            yield from _each(apart, measured, pictures, tensors, exact, everything)


def _of_float(
    measured: Measured, pictures: Sequence[Tensor], photographs: Sequence[Tensor], each: bool
) -> Iterator[Row]:
    """What quantization after training costs a codec in float, and what each rounding costs."""
    before, used = with_ranges(measured.codec, photographs, Quantization("all"))
    after = copy.deepcopy(before)
    round_to_grid(after, used)
    for _, levels in islice(levels_of(after), 1):  # chosen just now
        set_steps(before, levels.step, levels.splits)
    exact, rounded = measured.losses(measured.codec, pictures), measured.losses(after, pictures)
    bar = BAR_OF_RELU if measured.codec.architecture.g_a.name == "relu" else BAR
    what = f"{measured.codec.arch}, {measured.name}: RD loss of int8 after {len(used)} photographs against float"
    yield Row(what, _more(rounded, exact), "%", at_most=bar, sides=_of_points(measured, rounded, exact))
    if each:
        apart, switches = taken_apart(before, after)
        everything = _with(apart, measured, pictures, switches, switches)
        yield from _each(apart, measured, pictures, switches, exact, everything)


def _each(
    apart: Codec,
    measured: Measured,
    pictures: Sequence[Tensor],
    switches: dict[str, Switch],
    exact: Tensor,
    everything: Tensor,
) -> Iterator[Row]:
    """What each rounding costs alone, and what the codec gains if it alone is left out, in percent of `exact`.

    Args:
        everything: the RD loss of each point with all roundings on.
    """
    nothing = _with(apart, measured, pictures, switches, [])
    for name in switches:
        alone = _with(apart, measured, pictures, switches, [name])
        without = _with(apart, measured, pictures, switches, switches.keys() - {name})
        sides = {"restored alone, %": _more(everything, exact) - _more(without, exact)}
        yield Row(
            f"{measured.name}: {name} rounded alone", _more(alone, exact) - _more(nothing, exact), "%", sides=sides
        )


def _with(
    apart: Codec, measured: Measured, pictures: Sequence[Tensor], switches: dict[str, Switch], on: Iterable[str]
) -> Tensor:
    """The RD loss of each point with these roundings on."""
    chosen = set(on)
    for name, switch in switches.items():
        switch(name in chosen)
    return measured.losses(apart, pictures)


def _more(losses: Tensor, exact: Tensor) -> float:
    """By how many percent losses are larger, on the mean of the points."""
    return float((100 * (losses / exact - 1)).mean())


def _of_points(measured: Measured, losses: Tensor, exact: Tensor) -> dict[str, float]:
    """The same for each point of a codec of several rates."""
    more = (100 * (losses / exact - 1)).tolist()
    return {
        f"rate {rate:g}, %": each for (rate, _), each in zip(measured.points, more, strict=True) if rate is not None
    }


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
    parser.add_argument("checkpoints", nargs="+", help="checkpoints, or `sample`")
    parser.add_argument("--images", required=True, help="photographs to measure on")
    parser.add_argument("--calib_dir", type=Path, help="photographs to quantize codecs in float with")
    parser.add_argument("--photographs", type=int, default=64, help="how many of these [64]")
    parser.add_argument("--crops", type=int, default=6, help="how many pictures are measured [6]")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 384), help="height and width of these [256 384]")
    parser.add_argument("--total", action="store_true", help="only what int8 costs, not each rounding")
    given = parser.parse_args()
    pictures = crops(given.images, given.crops, *given.size)
    found = calibration_pictures(given.calib_dir, 224, 224) if given.calib_dir else ()
    photographs = list(islice(found, given.photographs))
    rows = [row for path in given.checkpoints for row in of_codec(path, pictures, photographs, not given.total)]
    publish("roundings", rows)


if __name__ == "__main__":
    main()
