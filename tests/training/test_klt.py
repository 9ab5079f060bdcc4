"""The KLT start: random weights become a transform coder, once, for every architecture and number of ranks."""

import math
from pathlib import Path

import pytest
import torch
from programs import TINY, distance, into, train, weights
from torch import Tensor

from codec.description.architecture import ARCHITECTURES, Architecture
from codec.errors import InputError
from codec.network.architectures import new_codec
from training.klt import klt_start, step_size
from training.options import parse
from training.setup import set_up

LAMBDA = 0.013


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.klt.FIT_STEPS", 40)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_codes_at_a_useful_rate_before_the_first_step(arch: str, picture: Tensor) -> None:
    torch.manual_seed(0)
    codec = new_codec(Architecture(24, 48, arch=arch))
    random = psnr(codec(picture)["x_hat"], picture)
    said = klt_start(codec, quarters(picture), LAMBDA)
    with torch.no_grad():
        found = codec.eval()(picture)
    assert said > random + 10
    assert psnr(found["x_hat"], picture) > random + 10  # means that are not trained enough cost something
    bits = sum(-each.log2().sum() for each in found["likelihoods"].values()) / picture[0, 0].numel()
    y = codec.g_a(picture).detach()
    spread = y.transpose(0, 1).flatten(1).std(1).clamp(min=0.1)
    assert y.mean().abs() < 0.2
    assert bits < 1.1 * (0.5 * (2 * math.pi * math.e * (spread.square() + 1 / 12)).log2()).sum() / 256 + 0.1


def test_channels_between_layers_have_one_scale(picture: Tensor) -> None:
    torch.manual_seed(0)
    codec = new_codec(Architecture(24, 48))
    klt_start(codec, quarters(picture), LAMBDA)
    x = picture
    with torch.no_grad():
        for layer in codec.g_a[:6]:
            x = layer(x)
            spread = x.std((0, 2, 3))
            assert spread.max() < 1.1  # a GDN compresses the few large values
            assert spread.median() > 0.9


def test_z_says_something_of_y(picture: Tensor) -> None:
    """Nothing pays for z at first, so it is not trained to be constant."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(24, 48, arch="bmshj2018_hyperprior"))
    klt_start(codec, quarters(picture), LAMBDA)
    with torch.no_grad():
        y = codec.g_a(picture)
        z = codec.entropy_bottleneck.symbols(codec.h_a(y.abs()))
        scales, _ = codec.predict(codec.entropy_bottleneck(codec.h_a(y.abs()))[0], y)
    assert (z.std((0, 2, 3)) > 0.3).float().mean() > 0.9
    relative = (scales.std((0, 2, 3)) / scales.mean((0, 2, 3)))[y.std((0, 2, 3)) > 0.5]
    assert relative.mean() > 0.1


def test_y_is_rounded_as_finely_as_lambda_asks_for() -> None:
    """The derivative of lambda 255^2 D / 3 + log2(1 / D) / 2 with respect to D is 0 at D = step^2 / 12."""
    error = step_size(LAMBDA) ** 2 / 12
    assert pytest.approx(1 / (2 * math.log(2) * error)) == LAMBDA * 255**2 / 3


def test_it_happens_once(coco224: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def steps(folder: str, count: int) -> list[object]:
        return ["--coco_dir", coco224, *TINY, *into(tmp_path / folder), "--klt_start", "true", "--max_steps", count]

    assert train(*steps("whole", 2)) == 0
    assert train(*steps("resumed", 1)) == 0
    assert train(*steps("resumed", 2)) == 0
    assert capfd.readouterr().err.count("KLT start") == 2
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == 0


def test_trained_weights_are_not_replaced(coco224: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--klt_start true replaces trained weights"):
        set_up(parse(["--coco_dir", str(coco224), "--klt_start", "true", *map(str, into(tmp_path))]))


def quarters(picture: Tensor) -> list[Tensor]:
    """The four quarters of a picture of 512x512; of smaller ones, z would be all border."""
    return list(picture.unfold(2, 256, 256).unfold(3, 256, 256).flatten(2, 3).permute(2, 0, 1, 3, 4))


def psnr(x_hat: Tensor, x: Tensor) -> float:
    return -10 * (x_hat.detach().clamp(0, 1) - x).square().mean().log10().item()
