"""The study of rates: one codec of all rates against a codec for each, all from the embedded GDN codec.

The embedded codec has a hyperprior. For another architecture its g_a and g_s get the entropy models of that, which are
fitted to its y, and all of it trains on for some steps first.

Each codec of one rate begins exactly as that codec is at its rate: its gains become a part of the weights. Then each
trains on for the same steps, and so does the codec of all rates. A codec of one rate counts as it was best, at its
start or at the end with one of several learning rates: with the gains in them some weights are several times smaller
or larger than before, and with one rate h_s is trained with z and noise, where with several it has z rounded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import RESULTS, publish
from benchmarks.rates import as_lists, compared
from benchmarks.study.plan import BUDGETS, Job, Study
from benchmarks.study.run import Worker
from coco224.dataset import open_split
from codec.checkpoint.ours import load_codec, save_codec
from codec.evaluation.compare import measure_all
from codec.evaluation.curves import Point, plot
from codec.evaluation.pictures import open_pictures
from codec.evaluation.ranks import Ranks
from codec.network.architectures import new_codec
from codec.network.bottleneck import Bottleneck
from codec.network.codec import Codec
from codec.network.gains import Gains
from codec.network.hyperprior import HyperCodec
from codec.network.pixels import to_float
from codec.network.tables import with_tables
from codec.sample import GDN, NPU, to_start_from
from export.__main__ import main as export
from training.klt import PICTURES, scale_input, start_entropy_models
from training.objective import RateDistortion

BUDGET = "rates"
FIRST, SEVERAL = "first", "several"
FORMATS = ("jpeg", "webp", "avif")


class RatesStudy(Study):
    """The jobs of an architecture: the codec of all rates, and one for each of its rates."""

    def __init__(self, folder: Path, crops: Path, arch: str) -> None:
        super().__init__(replace(BUDGETS[BUDGET], arch=arch), folder, crops)
        self.embedded, self.description = load_codec(to_start_from(GDN))

    def stages(self) -> Iterator[list[Job]]:
        """See `Study.stages`; what the runs start from is written first."""
        start, low_to_high = self.embedded, f"{self.description.options['lambda_mse']}"
        if self.budget.arch != start.arch:
            self.keep(FIRST, with_other_entropy_models(start, self.budget.arch, self.crops))
            first = self.trained_on(FIRST, low_to_high, self.budget.rates[-1])
            yield [first]
            start, _ = load_codec(self.ended(first.name))
        self.keep(SEVERAL, start)
        for number in range(len(self.each_lambda)):
            self.keep(single(number), at_one_rate(start, number))
        yield [
            self.trained_on(SEVERAL, low_to_high, self.budget.rates[-1]),
            *(
                self.trained_on(single(number), each, lr)
                for number, each in enumerate(self.each_lambda)
                for lr in self.budget.rates
            ),
        ]

    def keep(self, name: str, codec: Codec) -> None:
        """Writes what a codec's runs start from, unless it is there."""
        path = self.ended(f"{name}-start")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_codec(path, with_tables(codec), self.description)

    def ended(self, name: str) -> Path:
        """The last checkpoint of a run."""
        return self.folder / name / "last.safetensors"

    def trained_on(self, name: str, lambda_mse: float | str, lr: float) -> Job:
        """The run of a codec at a learning rate."""
        steps = self.budget.first_steps if name == FIRST else self.budget.extra_steps
        options = ("--act", "gdn", "--lr", lr, "--lr_warmup_steps", 50, "--compile", "true")
        return Job(f"{name}-lr{lr:g}", lambda_mse, steps, options, f"{name}-start")

    @property
    def each_lambda(self) -> list[float]:
        """The lambda of each rate that the embedded codec was trained at."""
        loss = RateDistortion(loss_type="mse", lambda_mse=str(self.description.options["lambda_mse"]))
        found: list[float] = loss.lambdas(torch.linspace(0, 1, self.embedded.architecture.rates)).tolist()
        return found

    def best(self, images: str) -> list[Point]:
        """The points of the codecs of one rate, each as it was best on the pictures."""
        found = []
        for number, each in enumerate(self.each_lambda):
            start = f"{single(number)}-start"
            if self.figures(start) is None:
                Worker(self, images, math.inf).measure(self.folder / start)
            names = [start, *(self.trained_on(single(number), each, lr).name for lr in self.budget.rates)]
            rows = self.figures(min(names, key=lambda name: self.rd_loss(name, each)))
            assert rows is not None
            bpp, psnr, ms_ssim = (mean(row[key] for row in rows) for key in ("bpp", "psnr", "ms_ssim"))
            found.append(Point(bpp, psnr, ms_ssim))
        return found

    def timed(self) -> list[Path]:
        """The runs of the codecs of one rate whose time counts."""
        lr = self.budget.rates[-1]
        return [
            self.ended(self.trained_on(single(number), each, lr).name) for number, each in enumerate(self.each_lambda)
        ]


def studies(folder: Path, crops: Path, archs: Sequence[str]) -> dict[str, Study]:
    """One study per architecture."""
    return {arch: RatesStudy(folder / arch, crops, arch) for arch in archs}


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
            pair = int8_pair(Path(folder)) if arch == study.embedded.arch else None
            several = study.ended(study.trained_on(SEVERAL, "", study.budget.rates[-1]).name)
            rows, curves = compared(several, study.best(images), study.timed(), pair, images)
        name, curves = f"{BUDGET}_{arch}", [*curves, *measured.curves]
        plot(RESULTS / f"{name}.png", f"{arch}: one checkpoint for all rates, on {Path(images).name}", curves)
        command = f"python -m benchmarks.study --coco_dir COCO --images {Path(images).name} --out DIR --budget {BUDGET}"
        details = {"command": f"{command} --arch {arch}", "pictures": Path(images).name}
        publish(name, rows, details | {"curves": {each.name: as_lists(each) for each in curves}})


def int8_pair(folder: Path) -> tuple[Path, Path]:
    """The graphs of the embedded int8 codec, encoder and decoder."""
    parts = ("encoder", "decoder")
    for part in parts:
        words = ["--ckpt", NPU, "--part", part, "--out", str(folder / f"{part}.onnx"), "--dynamic", "true"]
        assert export([*words, "--precision", "int8"]) == 0
    encoder, decoder = (folder / f"{part}.onnx" for part in parts)
    return encoder, decoder


def with_other_entropy_models(codec: Codec, arch: str, crops: Path) -> Codec:
    """A codec of several rates with g_a, g_s and gains of another one, and entropy models fitted to its y.

    Args:
        crops: a prepared dataset.
    """
    other = new_codec(replace(codec.architecture, arch=arch))
    kept = {name: each for name, each in codec.state_dict().items() if name.startswith(("g_a.", "g_s.", "y_gains."))}
    other.load_weights(other.state_dict() | kept)
    rows = open_split(crops, "train")
    assert rows is not None
    chosen = np.random.default_rng(0).permutation(len(rows))[:PICTURES]
    zeros = np.zeros_like(chosen)
    pixels = rows.read(chosen, zeros, zeros, BUDGETS[BUDGET].input_size)
    start_entropy_models(other, to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2)).split(8))
    return other


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
