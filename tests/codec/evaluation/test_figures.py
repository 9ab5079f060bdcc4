"""The figures of a codec against CompressAI's own model, numpy and pictures of every size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from PIL import Image
from pytorch_msssim import ms_ssim
from torch import Tensor

from codec.description.architecture import Architecture
from codec.evaluation.figures import Figures, evaluate
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.pixels import pad
from codec.network.tables import with_tables

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec() -> Codec:
    """Random, but with latents that spread over some symbols."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    return with_tables(codec)


@pytest.fixture(scope="module")
def pictures(photographs: Path) -> dict[str, Tensor]:
    """uint8 [1, 3, H, W] by name."""

    def read(name: str) -> Tensor:
        return torch.from_numpy(np.array(Image.open(photographs / name))).permute(2, 0, 1)[None]

    chelsea, coffee = read("chelsea.png"), read("coffee.png")
    assert chelsea.shape[-2:] == (300, 451)
    return {
        "odd": chelsea,
        "whole": coffee[..., :384, :512],
        "just large enough": coffee[..., :161, 100:300],
        "under MS-SSIM's minimum": coffee[..., :160, 100:301],
        "smaller than the stride": chelsea[..., 100:109, 200:213],
        "one pixel": chelsea[..., 150:151, 200:201],
    }


def theirs(codec: Codec, picture: Tensor) -> tuple[float, float | None, float, float]:
    """PSNR, MS-SSIM, L1 and bpp with CompressAI's model and numpy."""
    model = FactorizedPrior(codec.N, codec.M).eval()
    model.load_state_dict(codec.state_dict())
    x = picture[0].numpy().astype(np.float64)
    height, width = x.shape[-2:]
    padded = np.pad(x, ((0, 0), (0, -height % 16), (0, -width % 16)), mode="edge") / 255
    with torch.no_grad():
        out = model(torch.from_numpy(padded).float()[None])
    x_hat = out["x_hat"][0, :, :height, :width].double().numpy().clip(0, 1)
    rounded = np.rint(x_hat * 255)
    psnr = 10 * np.log10(255**2 / np.mean((rounded - x) ** 2))
    bpp = -np.log2(out["likelihoods"]["y"].double().numpy()).sum() / (height * width)
    similarity = None
    if min(height, width) > 160:
        similarity = float(ms_ssim(torch.from_numpy(rounded)[None], torch.from_numpy(x)[None], data_range=255))
    return psnr, similarity, np.abs(x_hat - x / 255).mean(), bpp


def test_every_size_of_picture_has_the_figures_that_compressai_s_model_and_numpy_give(
    codec: Codec, pictures: dict[str, Tensor]
) -> None:
    rows = list(evaluate(codec, pictures.values(), CPU))
    assert len(rows) == len(pictures)
    for (name, picture), row in zip(pictures.items(), rows, strict=True):
        psnr, similarity, l1, bpp = theirs(codec, picture)
        assert row.psnr == pytest.approx(psnr, abs=1e-3), name
        assert row.ms_ssim == (similarity if similarity is None else pytest.approx(similarity, abs=1e-5)), name
        assert row.l1 == pytest.approx(l1, rel=1e-4), name
        assert row.bpp_estimated == pytest.approx(bpp, rel=1e-4), name
    assert [row.ms_ssim is None for row in rows] == [False, False, False, True, True, True]


def known(row: Figures) -> dict[str, float]:
    """The figures that a picture has."""
    return {name: value for name, value in vars(row).items() if value is not None}


def test_figures_are_a_picture_s_own_whatever_batch_it_is_in(codec: Codec, pictures: dict[str, Tensor]) -> None:
    whole = pictures["whole"]
    tiles = torch.cat([whole[..., top : top + 192, left : left + 192] for top in (0, 192) for left in (0, 192, 320)])
    alone = list(evaluate(codec, tiles.split(1), CPU))
    for size in (2, 4, 6):
        for one, row in zip(alone, evaluate(codec, tiles.split(size), CPU), strict=True):
            assert known(row) == pytest.approx(known(one), rel=1e-4)
    assert len({row.psnr for row in alone}) == 6


def test_pictures_are_read_one_batch_at_a_time(codec: Codec, pictures: dict[str, Tensor]) -> None:
    read = []

    def batches() -> Iterator[Tensor]:
        for name in ("one pixel", "smaller than the stride"):
            read.append(name)
            yield pictures[name]

    rows = evaluate(codec, batches(), CPU)
    assert isinstance(next(rows), Figures)
    assert read == ["one pixel"]


def test_reconstructions_are_handed_out_in_the_size_of_the_picture(codec: Codec, pictures: dict[str, Tensor]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    list(evaluate(codec, pictures.values(), CPU, lambda x, x_hat: seen.append((x, x_hat))))
    for picture, (x, x_hat) in zip(pictures.values(), seen, strict=True):
        assert x_hat.shape == picture.shape
        assert torch.equal(x.mul(255).round().to(torch.uint8), picture)
        assert x_hat.min() >= 0
        assert x_hat.max() <= 1


def test_padding_repeats_the_last_pixels_and_cuts_nothing(pictures: dict[str, Tensor]) -> None:
    for picture in pictures.values():
        x = picture.float()
        height, width = x.shape[-2:]
        padded = pad(x)
        assert padded.shape[-1] % 16 == padded.shape[-2] % 16 == 0
        assert padded.shape[-2] - height < 16
        assert padded.shape[-1] - width < 16
        assert torch.equal(padded[..., :height, :width], x)
        assert (padded[..., :height, width:] == x[..., -1:]).all()
        assert (padded[..., height:, :width] == x[..., -1:, :]).all()
