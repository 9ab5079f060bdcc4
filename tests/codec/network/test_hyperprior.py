"""The codecs with a hyperprior, against CompressAI's."""

from pathlib import Path

import pytest
import torch
from compressai.models import CompressionModel, MeanScaleHyperprior, ScaleHyperprior
from torch import Tensor

from codec.checkpoint.compressai import load_compressai
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from codec.network.tables import with_tables
from training.scope import set_trainable, trainable_modules

THEIRS = {"bmshj2018_hyperprior": ScaleHyperprior, "mbt2018_mean": MeanScaleHyperprior}


@pytest.fixture(params=THEIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Codec, CompressionModel]:
    """Our codec and CompressAI's, in eval mode, with the same weights, which predict scales of many sizes."""
    torch.manual_seed(1)
    theirs = THEIRS[request.param](16, 24).eval()
    with torch.no_grad():
        theirs.g_a[6].weight *= 50
        theirs.h_a[4].weight *= 20
        theirs.h_s[4].bias.uniform_(-2, 8)
    ours = new_codec(Architecture(16, 24, arch=request.param)).eval()
    ours.load_weights(theirs.state_dict())
    return ours, theirs


def crop(picture: Tensor, height: int, width: int) -> Tensor:
    return picture[..., :height, :width]


@torch.no_grad()
def test_pictures_and_likelihoods_are_compressai_s(pair: tuple[Codec, CompressionModel], picture: Tensor) -> None:
    ours, theirs = (codec(crop(picture, 128, 192)) for codec in pair)
    assert torch.equal(ours["x_hat"], theirs["x_hat"])
    for name in ("y", "z"):
        assert ours["likelihoods"][name].unique().numel() > 10
        torch.testing.assert_close(ours["likelihoods"][name], theirs["likelihoods"][name], rtol=0, atol=1e-6)


def test_state_dicts_load_both_ways_with_and_without_tables(
    pair: tuple[Codec, CompressionModel], picture: Tensor
) -> None:
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    built = with_tables(ours)
    fresh = type(theirs)(16, 24).eval()
    fresh.load_state_dict(built.state_dict())
    x = crop(picture, 128, 192)
    assert fresh.compress(x)["strings"] == built.compress(x)["strings"]
    theirs.update()
    again = new_codec(ours.architecture).eval()
    again.load_weights(theirs.state_dict())
    assert torch.equal(again(x)["x_hat"], theirs(x)["x_hat"])


@pytest.mark.parametrize("size", [(16, 16), (224, 208), (80, 144)])
def test_every_size_of_y_has_a_z(pair: tuple[Codec, CompressionModel], picture: Tensor, size: tuple[int, int]) -> None:
    codec = pair[0]
    out = codec(crop(picture, *size))
    assert out["x_hat"].shape[2:] == size
    assert out["likelihoods"]["y"].shape[2:] == (size[0] // 16, size[1] // 16)
    assert out["likelihoods"]["z"].shape[2:] == (-(-size[0] // 64), -(-size[1] // 64))


def test_noise_is_that_of_the_key_and_y_and_z_have_their_own(pair: tuple[Codec, CompressionModel]) -> None:
    codec = pair[0].train()
    keys = noise_keys(0, 3, torch.arange(2))
    y = torch.zeros(2, 24, 8, 8)
    y_hat, _, _ = codec.quantize(y, keys, False)
    z_hat: list[Tensor] = []
    codec.h_s.register_forward_pre_hook(lambda _, inputs: z_hat.append(inputs[0]))
    again, _, _ = codec.quantize(y[1:], keys[1:], False)
    assert torch.equal(y_hat[1:], again)
    y_noise = y_hat[1].detach().flatten()[: z_hat[0].numel()]
    z_noise = (z_hat[0] - codec.h_a(codec.seen_by_h_a(y[1:]))).detach().flatten()
    assert z_noise.abs().max() <= 0.5 + 1e-4
    assert torch.corrcoef(torch.stack([y_noise, z_noise]))[0, 1].abs() < 0.4


def test_a_detached_rate_trains_the_hyperprior_and_no_transform(
    pair: tuple[Codec, CompressionModel], picture: Tensor
) -> None:
    codec = pair[0].train()
    out = codec(crop(picture, 64, 64), noise_keys(0, 0, torch.arange(1)), detach_rate=True)
    sum(values.log().sum() for values in out["likelihoods"].values()).backward()
    trained = {name.partition(".")[0] for name, p in codec.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"h_a", "h_s", "entropy_bottleneck"}


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("replaced", {"g_a"}),
        ("replaced+entropy", {"g_a", "entropy_bottleneck"}),
        ("replaced+hyper", {"g_a", "entropy_bottleneck", "h_a", "h_s"}),
        ("all", {"g_a", "g_s", "entropy_bottleneck", "h_a", "h_s"}),
    ],
)
def test_scopes_train_what_they_name(scope: str, names: set[str]) -> None:
    codec = new_codec(Architecture(8, 12, arch="mbt2018_mean"))
    set_trainable(codec, trainable_modules(codec, "encoder", scope), train_quantiles=True)
    assert {name.partition(".")[0] for name, p in codec.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_widths_are_the_zoo_s(arch: str) -> None:
    from compressai.zoo.image import cfgs

    assert {quality: zoo_widths(quality, arch) for quality in range(1, 9)} == cfgs[arch.replace("_", "-")]


@pytest.mark.parametrize("arch", THEIRS)
def test_a_checkpoint_of_compressai_s_trainer_is_recognized(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    theirs = THEIRS[arch](8, 12)
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, path)
    codec = load_compressai(path)
    assert codec.architecture == Architecture(8, 12, arch=arch)
    assert torch.equal(codec.h_s[0].weight, theirs.h_s[0].weight)


def test_weights_of_another_architecture_are_refused() -> None:
    other = new_codec(Architecture(8, 12, arch="mbt2018_mean")).state_dict()
    with pytest.raises(InputError, match="another architecture than bmshj2018_hyperprior"):
        new_codec(Architecture(8, 12, arch="bmshj2018_hyperprior")).load_weights(other)
    with pytest.raises(InputError, match="'elic': not one of bmshj2018_factorized"):
        Architecture(8, 12, BlockChoice("relu"), arch="elic")
