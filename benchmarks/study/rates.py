"""The study of rates: one codec of all rates against a codec for each, all from the embedded GDN codec.

Each codec of one rate begins exactly as the embedded codec is at that rate: its gains become a part of the weights.
Then each trains on for the same steps, and so does the codec of all rates.
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
        count = codec.architecture.rates
        low, high = map(float, str(description.options["lambda_mse"]).split(":"))
        lambdas = [low * (high / low) ** (number / (count - 1)) for number in range(count)]
        starts = {SEVERAL: codec} | {single(number): at_one_rate(codec, number) for number in range(count)}
        for name, start in starts.items():
            path = self.folder / f"{name}-start" / "last.safetensors"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_codec(path, with_tables(start), description)
        of_each = {SEVERAL: f"{low}:{high}"} | {single(number): each for number, each in enumerate(lambdas)}
        options = ("--act", "gdn", "--lr", 1e-4, "--lr_warmup_steps", 50, "--compile", "true")
        steps = self.budget.extra_steps
        yield [Job(name, each, steps, options, f"{name}-start") for name, each in of_each.items()]


def single(number: int) -> str:
    """The run of the codec of one rate."""
    return f"rate-{number}"


def summarize(study: Study, images: str) -> None:
    """Measures the finished runs and the embedded int8 codec, and publishes `results/rates.json`."""
    checkpoints = {path.parent.name: path for path in sorted(study.folder.glob("*/last.safetensors"))}
    singles = [path for name, path in checkpoints.items() if name.startswith("rate-") and not name.endswith("-start")]
    words = ["--images", images, "--several", str(checkpoints[SEVERAL]), "--single", *map(str, singles)]
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
