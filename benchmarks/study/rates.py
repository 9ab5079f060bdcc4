"""The study of rates: one codec of all rates against a codec for each, all from the embedded GDN codec.

Each codec of one rate begins exactly as the embedded codec is at that rate: its gains become a part of the weights.
Then each trains on for the same steps, and so does the codec of all rates. A codec of one rate counts with the learning
rate at which it ended best: with its gains in them, some weights are several times smaller or larger than before.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks import rates
from benchmarks.study.plan import BUDGETS, Job, Study
from codec.checkpoint.ours import load_codec, save_codec
from codec.description.file import Description
from codec.network.architectures import new_codec
from codec.network.bottleneck import Bottleneck
from codec.network.codec import Codec
from codec.network.gains import Gains
from codec.network.hyperprior import HyperCodec
from codec.network.tables import with_tables
from codec.sample import GDN, NPU, to_start_from
from export.__main__ import main as export
from training.klt import scale_input

BUDGET = "rates"
SEVERAL = "several"


class RatesStudy(Study):
    """The jobs: the codec of all rates, and one for each of its rates."""

    def __init__(self, folder: Path, crops: Path) -> None:
        super().__init__(BUDGETS[BUDGET], folder, crops)

    def stages(self) -> Iterator[list[Job]]:
        """See `Study.stages`; what the runs start from is written first."""
        codec, description = load_codec(to_start_from(GDN))
        starts = {SEVERAL: codec} | {single(n): at_one_rate(codec, n) for n in range(codec.architecture.rates)}
        for name, start in starts.items():
            path = self.folder / f"{name}-start" / "last.safetensors"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_codec(path, with_tables(start), description)
        several, lambdas = f"{description.options['lambda_mse']}", lambdas_of(codec, description)
        yield [
            self.trained_on(SEVERAL, several, self.budget.rates[-1]),
            *(self.trained_on(single(n), each, lr) for n, each in enumerate(lambdas) for lr in self.budget.rates),
        ]

    def best(self) -> list[Path]:
        """The checkpoints of the codecs of one rate, each of the learning rate at which it ended best."""
        found = []
        for n, each in enumerate(lambdas_of(*load_codec(to_start_from(GDN)))):
            names = [self.trained_on(single(n), each, lr).name for lr in self.budget.rates]
            found.append(self.folder / min(names, key=lambda name: self.rd_loss(name, each)) / "last.safetensors")
        return found

    def trained_on(self, name: str, lambda_mse: float | str, lr: float) -> Job:
        """The run of a codec at a learning rate."""
        options = ("--act", "gdn", "--lr", lr, "--lr_warmup_steps", 50, "--compile", "true")
        return Job(f"{name}-lr{lr:g}", lambda_mse, self.budget.extra_steps, options, f"{name}-start")


def single(number: int) -> str:
    """The codec of one rate."""
    return f"rate-{number}"


def lambdas_of(codec: Codec, description: Description) -> list[float]:
    """The lambda of each rate that a codec was trained at."""
    low, high = map(float, str(description.options["lambda_mse"]).split(":"))
    last = codec.architecture.rates - 1
    return [low * (high / low) ** (n / last) for n in range(last + 1)]


def summarize(study: Study, images: str) -> None:
    """Measures the finished runs and the embedded int8 codec, and publishes `results/rates.json`."""
    assert isinstance(study, RatesStudy)
    (several,) = study.folder.glob(f"{SEVERAL}-lr*/last.safetensors")
    words = ["--images", images, "--several", str(several), "--single", *map(str, study.best())]
    with TemporaryDirectory() as folder:
        for part in ("encoder", "decoder"):
            out = str(Path(folder) / f"{part}.onnx")
            of_part = ["--part", part, "--out", out, "--dynamic", "true"]
            assert export(["--ckpt", NPU, *of_part, "--precision", "int8"]) == 0
            words += [f"--{part}", out]
        rates.main(words)


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
