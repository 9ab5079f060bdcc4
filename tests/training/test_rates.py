"""Training of several rates: what each picture draws, how the losses are weighted, and that runs resume exactly."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import TINY, into, rows, same, states, weights
from safetensors.torch import load_file

from codec.blocks import load_plugin
from codec.checkpoint import Description, open_codec, save_codec
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH, Architecture, BlockChoice
from codec.errors import InputError
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.tables import with_tables
from training.objective import RateDistortion
from training.options import parse
from training.rates import drawn_rates
from training.setup import set_up

Train = Callable[..., int]
RATES = ("--rates", 3, "--lambda_mse", "0.003:0.03", "--train_scope", "all")


def test_every_step_sees_all_rates_and_the_ends_are_drawn() -> None:
    places = torch.arange(16)
    seen = torch.stack([drawn_rates(8, 0, step, places) for step in range(200)])
    assert seen.min() == 0
    assert seen.max() == 1
    spread = seen.sort(1).values.diff(dim=1)
    assert spread.max() < 0.16
    assert seen.mean() == pytest.approx(0.5, abs=0.01)
    assert (seen == 1).float().mean() == pytest.approx(1 / 16, abs=0.02)


def test_a_rate_is_a_function_of_seed_step_and_place() -> None:
    whole = drawn_rates(5, 3, 7, torch.arange(12))
    assert torch.equal(torch.cat([drawn_rates(5, 3, 7, torch.arange(*part)) for part in ((0, 4), (4, 12))]), whole)
    assert not torch.equal(drawn_rates(5, 3, 8, torch.arange(12)), whole)
    assert not torch.equal(drawn_rates(5, 4, 7, torch.arange(12)), whole)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_g_s_gets_rounded_values_and_the_gains_learn_what_rounding_costs(arch: str) -> None:
    """The rate stays that of y with noise."""
    codec = new_codec(Architecture(8, 12, arch=arch))
    codec.add_rates(2, octaves=2.0)
    gains = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1).expand(2, 12, 1, 1).clone().requires_grad_()
    y, keys = 3 * torch.randn(2, 12, 4, 4, requires_grad=True), noise_keys(0, 0, torch.arange(2))
    others = () if arch == "bmshj2018_factorized" else (torch.ones_like(y), torch.randn_like(y))
    y_hat, likelihoods, *_ = codec.y_model(y, *others, keys=keys, gains=gains)
    centres = others[1] if others else codec.y_model.medians()
    symbols = (y_hat - centres) * gains
    torch.testing.assert_close(symbols, symbols.round(), rtol=0, atol=1e-4)
    assert (symbols - (y - centres) * gains).abs().max() <= 0.5 + 1e-4
    of_y, of_gains = torch.autograd.grad((y_hat - y).square().sum() / 2, [y_hat, gains], retain_graph=True)
    assert torch.equal(torch.autograd.grad(y_hat.sum(), y, retain_graph=True)[0], torch.ones_like(y))
    torch.testing.assert_close(of_gains, -(of_y.square() / gains).sum((2, 3), keepdim=True))
    assert of_gains.max() < 0  # a larger gain makes the error smaller
    again = codec.y_model(y, *others, keys=noise_keys(0, 1, torch.arange(2)), gains=gains)
    torch.testing.assert_close(again[0], y_hat)
    assert not torch.equal(again[1], likelihoods)


@pytest.mark.parametrize("loss_type", ["mse", "rd"])
def test_the_loss_is_the_weighted_mean_of_each_picture_at_its_lambda(loss_type: str) -> None:
    size = 16 if loss_type == "mse" else 176
    x, x_hat = torch.rand(3, 3, size, size), torch.rand(3, 3, size, size)
    likelihoods = {"y": torch.rand(3, 4, 2, 2) * 0.9 + 0.05}
    objective = RateDistortion(
        loss_type, lambda_bpp="0.005:0.02" if loss_type == "rd" else 0.01, lambda_mse="0.01:0.04"
    )
    loss, figures = objective({"x_hat": x_hat, "likelihoods": likelihoods}, x, torch.tensor([0.0, 0.5, 1.0]))
    alone = []
    for i, lam in enumerate((0.01, 0.02, 0.04) if loss_type == "mse" else (0.02, 0.01, 0.005)):
        single = RateDistortion(loss_type, lambda_bpp=lam, lambda_mse=lam)
        part = {"x_hat": x_hat[i : i + 1], "likelihoods": {"y": likelihoods["y"][i : i + 1]}}
        alone.append(float(single(part, x[i : i + 1])[0]) / math.sqrt(lam / (0.02 if loss_type == "mse" else 0.01)))
    assert float(loss) == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert figures["loss"] == loss


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bits_push_the_gains_down_in_every_channel(arch: str) -> None:
    codec = lively(arch)
    rate(codec(*INPUTS)).backward()
    assert codec.y_gains is not None
    gradient = codec.y_gains.drops.grad
    assert gradient is not None
    assert gradient.max() < 0  # larger drops, coarser rounding, fewer bits


def test_a_codec_of_several_rates_compiles_to_one_graph() -> None:
    codec = lively("mbt2018_mean")
    expected = rate(codec(*INPUTS))
    assert rate(torch.compile(codec, fullgraph=True, backend="eager")(*INPUTS)) == expected


PLUGIN = """
import torch
from torch import nn
from codec.blocks import register_activation

class Scaled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return self.scale * x

@register_activation("scaled")
class ScaledActivation:
    @staticmethod
    def encoder(channels, options): return Scaled(channels)
    decoder = encoder
"""


INPUTS = torch.rand(2, 3, 64, 64), torch.arange(2), False, torch.tensor([0.0, 0.4])


def lively(arch: str) -> Codec:
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12, arch=arch))
    codec.add_rates(3, octaves=1.0)
    with torch.no_grad():
        codec.g_a[6].weight *= 30
    return codec


def rate(out: dict) -> torch.Tensor:
    return -torch.stack([each.log2().sum() for each in out["likelihoods"].values()]).sum()


@pytest.mark.slow
def test_a_run_of_several_rates_resumes_bit_for_bit_and_makes_one_checkpoint_for_all(
    here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*RATES, "--arch", "bmshj2018_hyperprior", "--lr", 1e-3, "--eval_every", 1)
    assert here(tmp_path / "whole", *words, "--max_steps", 6) == 0
    assert here(tmp_path / "parts", *words, "--max_steps", 3) == 0
    assert here(tmp_path / "parts", *words, "--max_steps", 6) == 0
    for name in ("model", "optimizer"):
        a, b = (load_file(states(tmp_path / each)[-1] / f"{name}.safetensors") for each in ("whole", "parts"))
        assert same(a, b)
    (figures,) = rows(tmp_path / "whole", "validation")
    assert figures["bpp_estimated"] > 0
    codec = open_codec(tmp_path / "whole" / "last.safetensors")
    assert codec.architecture.rates == 3
    first = weights(tmp_path / "whole")["y_gains.drops"]
    assert (first != first[0, 0]).any()
    capsys.readouterr()
    # From there: --rates is the checkpoint's, another number is refused, and one lambda too.
    again = ("--init_checkpoint", tmp_path / "whole" / "last.safetensors", "--max_steps", 1, "--resume", "none")
    assert here(tmp_path / "on", *again, "--lambda_mse", "0.003:0.03") == 0
    with pytest.raises(InputError, match="has 3 rates, not --rates 4"):
        here(tmp_path / "other", *again, "--rates", 4, "--lambda_mse", "0.003:0.03")
    with pytest.raises(
        InputError, match=re.escape("has 3 rates: give the lambdas of the lowest and of the highest rate")
    ):
        here(tmp_path / "other", *again)


@pytest.mark.slow
def test_a_range_of_lambda_bpp_trains_a_plugin_s_block_with_ms_ssim_at_all_rates(
    here: Train, tmp_path: Path, photographs: Path
) -> None:
    (tmp_path / "scaled.py").write_text(PLUGIN)
    words = ["--plugin", tmp_path / "scaled.py", "--act", "scaled", "--replace_parts", "all", "--train_scope", "all"]
    words += ["--rates", 3, "--loss_type", "rd", "--lambda_bpp", "0.005:0.5", "--input_size", 176, "--batch_size", 4]
    assert here(tmp_path / "run", *words, "--max_steps", 2, "--eval_every", 1, "--lr", 1e-3) == 0
    first, second = rows(tmp_path / "run", "train")
    assert first.keys() >= {"loss", "bpp", "l1", "ms_ssim"}
    assert all(map(math.isfinite, (first["loss"], second["loss"])))
    (figures,) = rows(tmp_path / "run", "validation")
    # lambda falls with the rate; the figure of the evaluation has that of the middle
    expected = 0.4 * figures["l1"] + 0.6 * (1 - figures["ms_ssim"]) + 0.05 * figures["bpp_estimated"]
    assert figures["rd"] == pytest.approx(expected, rel=1e-5)
    trained = weights(tmp_path / "run")
    assert (trained["g_a.1.scale"] != 1).all()
    assert (trained["y_gains.drops"] != trained["y_gains.drops"][0, 0]).any()
    load_plugin(str(tmp_path / "scaled.py"))
    files = FileCodec(open_codec(tmp_path / "run" / "last.safetensors"))
    assert files.codec.architecture.g_a.name == "scaled"
    picture = torch.from_numpy(np.array(Image.open(photographs / "coffee.png"))[:96, :128]).permute(2, 0, 1)[None]
    sizes = [len(files.compress(picture, rate)[0]) for rate in (0, 64, 128)]
    assert sizes[0] <= sizes[1] <= sizes[2]
    assert files.decompress(files.compress(picture, 64))[0].shape == picture.shape[1:]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_from_a_checkpoint_of_one_rate_the_highest_begins_as_that_codec(
    arch: str, coco224: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12, BlockChoice("relu"), BlockChoice("relu"), arch=arch))
    with torch.no_grad():
        codec.g_a[6].weight *= 30
    single = with_tables(codec)
    save_codec(tmp_path / "one.safetensors", single, Description())
    tiny = TINY[TINY.index("--num_workers") :]
    words = ["--coco_dir", coco224, *tiny, "--init_checkpoint", tmp_path / "one.safetensors", "--act", "relu", *RATES]
    run = set_up(parse([str(word) for word in [*words, *into(tmp_path / "run")]]))
    batch = next(run.micro_batches)
    x, keys, highest = run.to_pictures(batch.images), batch.keys, torch.ones(len(batch.keys))
    with torch.no_grad():
        # The rate of the latent that has densities in the first step; what is decoded is rounded there, and has noise
        # in a codec of one rate.
        latent = "y" if arch == DEFAULT_ARCH else "z"
        one, several = (
            each["likelihoods"][latent] for each in (single.train()(x, keys), run.codec(x, keys, False, highest))
        )
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-7)
        shipped = run.shipped()
        assert torch.equal(shipped(x, rates=highest)["x_hat"], single.eval()(x)["x_hat"])
    one_file, several_files = FileCodec(single), FileCodec(shipped)
    for a, b in zip(one_file.latents(batch.images[:1]), several_files.latents(batch.images[:1]), strict=True):
        assert np.array_equal(a.y, b.y)
        assert a.z is None or b.z is None or np.array_equal(a.z, b.z)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--rates 4 --loss_type mse",
            "--rates 4 with --lambda_mse 0.01: give the range of lambdas, --lambda_mse LOW:HIGH",
        ),
        ("--rates 4", "--rates 4 with --loss_type recon, which has no rate"),
        (
            "--loss_type mse --lambda_mse 0.1:0.2",
            "--lambda_mse 0.1:0.2 is a range for codecs of several rates: give --rates 8",
        ),
        ("--rates 4 --loss_type mse --lambda_mse 0.2:0.1", "a range is LOW:HIGH, 0 < LOW < HIGH"),
        ("--rates 4 --loss_type rd --lambda_bpp 0:0.1", "a range is LOW:HIGH, 0 < LOW < HIGH"),
        ("--rates 4 --loss_type mse --lambda_mse a:b", "is neither a number nor a range LOW:HIGH"),
        ("--rates 4 --loss_type mse --lambda_mse 1:2:3", "is neither a number nor a range LOW:HIGH"),
        ("--loss_type mse --lambda_bpp 0.1:0.2", "--lambda_bpp 0.1:0.2: a range needs --loss_type rd"),
        ("--rates 65", "--rates 65: must be within 1..64"),
    ],
)
def test_rates_and_lambdas_that_contradict_each_other_are_refused(words: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        parse(["--coco_dir", "x", *words.split()])
