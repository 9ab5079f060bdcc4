"""The study of rates: one codec of all rates against a codec for each, all from the embedded GDN codec.

Each codec of one rate begins exactly as that codec is at its rate: its gains become a part of the weights. Then each
trains on for the same steps, and so does the codec of all rates. A codec of one rate counts as it was best, at its
start or at the end with one of several learning rates: with the gains in them some weights are several times smaller
or larger than before, and with one rate h_s is trained with z and noise, where with several it has z rounded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.harness import RESULTS, publish
from benchmarks.rates import as_lists, compared
from benchmarks.study import int8
from benchmarks.study.embedded import EmbeddedStudy, point_of
from benchmarks.study.int8 import Int8Study
from benchmarks.study.plan import Job, Study
from benchmarks.study.run import Worker
from codec.evaluation.compare import measure_all
from codec.evaluation.curves import Point, plot
from codec.evaluation.pictures import open_pictures
from codec.evaluation.ranks import Ranks
from codec.network.architectures import new_codec
from codec.network.bottleneck import Bottleneck
from codec.network.codec import Codec
from codec.network.gains import Gains
from codec.network.hyperprior import HyperCodec
from codec.sample import GDN, NPU
from export.__main__ import main as export
from training.klt import scale_input
from training.objective import RateDistortion

BUDGET = "rates"
SEVERAL = "several"
FORMATS = ("jpeg", "webp", "avif")


class RatesStudy(EmbeddedStudy):
    """The jobs of an architecture: the codec of all rates, and one for each of its rates."""

    def stages_from(self, start: Codec) -> Iterator[list[Job]]:
        """See `EmbeddedStudy.stages_from`."""
        self.keep(SEVERAL, start)
        for number in range(len(self.each_lambda)):
            self.keep(single(number), at_one_rate(start, number))
        yield [self.several, *(self.single(number, lr) for number in self.numbers for lr in self.budget.rates)]

    @property
    def several(self) -> Job:
        """The run of the codec of all rates."""
        return self.trained_on(SEVERAL, self.lambdas, self.budget.extra_steps, self.budget.rates[-1])

    def single(self, number: int, lr: float) -> Job:
        """The run of a codec of one rate."""
        return self.trained_on(single(number), self.each_lambda[number], self.budget.extra_steps, lr)

    @property
    def numbers(self) -> range:
        """Of the rates."""
        return range(self.embedded.architecture.rates)

    @property
    def each_lambda(self) -> list[float]:
        """The lambda of each rate that the embedded codec was trained at."""
        loss = RateDistortion(loss_type="mse", lambda_mse=self.lambdas)
        found: list[float] = loss.lambdas(torch.linspace(0, 1, len(self.numbers))).tolist()
        return found

    def best(self, images: str) -> list[Point]:
        """The points of the codecs of one rate, each as it was best on the pictures."""
        found = []
        for number, each in enumerate(self.each_lambda):
            start = f"{single(number)}-start"
            if self.figures(start) is None:
                Worker(self, images, math.inf).measure(self.folder / start)
            names = [start, *(self.single(number, lr).name for lr in self.budget.rates)]
            rows = self.figures(min(names, key=lambda name: self.rd_loss(name, each)))
            assert rows is not None
            found.append(point_of(rows))
        return found

    @property
    def in_int8(self) -> Path | None:
        """The int8 codec: the embedded one, or that of the study of int8 with the same --out, if it has run."""
        if self.budget.arch == self.embedded.arch:
            return Path(NPU)
        return Int8Study(int8.BUDGET, self.folder, self.crops, self.budget.arch).codec()

    def timed(self) -> list[Path]:
        """The runs of the codecs of one rate whose time counts."""
        return [self.ended(self.single(number, self.budget.rates[-1]).name) for number in self.numbers]


def studies(folder: Path, crops: Path, archs: Sequence[str]) -> dict[str, Study]:
    """One study per architecture."""
    return {arch: RatesStudy(BUDGET, folder / arch, crops, arch) for arch in archs}


def single(number: int) -> str:
    """The codec of one rate."""
    return f"rate-{number}"


def summarize(found: Mapping[str, Study], images: str) -> None:
    """Measures the finished runs, and publishes `results/rates_ARCH.json` and `.png` of each architecture."""
    pictures, ranks = open_pictures(images, None, True, 4), Ranks.join()
    measured = measure_all([GDN], list(FORMATS), pictures, ranks, fake_quant=True, keep_pictures=False, rates=4)
    for arch, study in found.items():
        assert isinstance(study, RatesStudy)
        with TemporaryDirectory() as folder:
            codec = study.in_int8
            pair = None if codec is None else int8_pair(codec, Path(folder))
            rows, curves = compared(study.ended(study.several.name), study.best(images), study.timed(), pair, images)
        name, curves = f"{BUDGET}_{arch}", [*curves, *measured.curves]
        plot(RESULTS / f"{name}.png", f"{arch}: one checkpoint for all rates, on {Path(images).name}", curves)
        command = f"python -m benchmarks.study --coco_dir COCO --images {Path(images).name} --out DIR --budget {BUDGET}"
        details = {"command": f"{command} --arch {arch}", "pictures": Path(images).name}
        publish(name, rows, details | {"curves": {each.name: as_lists(each) for each in curves}})


def int8_pair(codec: Path, folder: Path) -> tuple[Path, Path]:
    """The graphs of an int8 codec, encoder and decoder."""
    parts = ("encoder", "decoder")
    for part in parts:
        words = ["--ckpt", str(codec), "--part", part, "--out", str(folder / f"{part}.onnx"), "--dynamic", "true"]
        assert export([*words, "--precision", "int8"]) == 0
    encoder, decoder = (folder / f"{part}.onnx" for part in parts)
    return encoder, decoder


@torch.no_grad()
def at_one_rate(codec: Codec, number: int) -> Codec:
    """The codec of one rate that codes as a codec of several does at its trained rate of this number.

    Args:
        codec: in float.
    """
    assert codec.y_gains is not None
    alone = new_codec(replace(codec.architecture, rates=1))
    own = alone.state_dict()
    alone.load_weights({name: each for name, each in codec.state_dict().items() if name in own})
    of_y = gain(codec.y_gains, number)
    scale(alone.g_a[-1], alone.g_s[0], of_y)
    if isinstance(alone, HyperCodec):
        assert isinstance(codec, HyperCodec)
        assert codec.z_gains is not None
        of_z = gain(codec.z_gains, number)
        by_input(alone.h_a[0], 1 / of_y)
        scale(alone.h_a[-1], alone.h_s[0], of_z)
        last = next(layer for layer in reversed(alone.h_s) if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
        by_output(last, torch.cat([of_y, of_y]) if alone.has_means else of_y)
        widen(alone.entropy_bottleneck, of_z)
    else:
        widen(alone.entropy_bottleneck, of_y)
    return alone


def gain(gains: Gains, number: int) -> Tensor:
    """The gains [C] at a trained rate."""
    last = len(gains.exponents) - 1
    found: Tensor = gains(torch.tensor([number / last]))
    return found.flatten()


def scale(before: nn.Module, after: nn.Module, factors: Tensor) -> None:
    """Scales the channels [C] between two convolutions; the second one takes it back."""
    by_output(before, factors)
    by_input(after, 1 / factors)


def by_output(layer: nn.Module, factors: Tensor) -> None:
    """Scales a convolution's outputs, in place."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert layer.bias is not None
    shape = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    layer.weight.mul_(factors.view(shape))
    layer.bias.mul_(factors)


def by_input(layer: nn.Module, factors: Tensor) -> None:
    """Scales what a convolution does to each of its inputs, in place."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    shape = (-1, 1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (1, -1, 1, 1)
    layer.weight.mul_(factors.view(shape))


def widen(bottleneck: Bottleneck, factors: Tensor) -> None:
    """Makes the densities those of values times the factors [C], in place."""
    scale_input(bottleneck, 1 / factors)
    bottleneck.quantiles.mul_(factors[:, None, None])
