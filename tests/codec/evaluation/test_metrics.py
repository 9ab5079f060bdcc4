"""The figures of a picture agree with numpy and scikit-image, on photographs."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from codec.evaluation.metrics import bpp, ms_ssim, psnr
from codec.network.pixels import to_uint8


def photograph(name: str, size: int) -> Tensor:
    with Image.open(Path(skimage.__file__).parent / "data" / f"{name}.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))[40 : 40 + size, 60 : 60 + size]
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.stack([photograph(name, 200) for name in ("astronaut", "chelsea", "coffee")])


@pytest.fixture(scope="module")
def decoded(pictures: Tensor) -> Tensor:
    """Each picture spoilt to another degree, beyond [0, 1] too, and not on 8-bit levels."""
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return pictures + noise * torch.tensor([0.02, 0.06, 0.15]).view(3, 1, 1, 1)


def as_8_bit(x: Tensor) -> np.ndarray:
    return np.rint(np.clip(x.numpy().astype(np.float64), 0, 1) * 255)


def numpy_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2003 on [C, H, W] in 0..255: 11-tap Gaussian, only where it fits; mean of the channels."""
    window = np.exp(-(np.arange(-5, 6.0) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, window, "valid")
        return x

    def halve(x: np.ndarray) -> np.ndarray:  # the mean of 2x2, over zeros beyond an odd side, as the reference pads
        x = np.pad(x, [(side % 2, side % 2) for side in x.shape])
        h, w = (side // 2 * 2 for side in x.shape)
        return x[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3))

    def channel(x: np.ndarray, y: np.ndarray) -> float:
        c1, c2, product = (0.01 * 255) ** 2, (0.03 * 255) ** 2, 1.0
        for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mx, my = blur(x), blur(y)
            vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            similarity = (2 * cov + c2) / (vx + vy + c2)
            if level == 4:
                similarity = similarity * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            product *= similarity.mean() ** weight
            x, y = halve(x), halve(y)
        return product

    return float(np.mean([channel(x, y) for x, y in zip(a, b, strict=True)]))


def test_psnr_is_that_of_the_8_bit_picture_that_a_viewer_gets(pictures: Tensor, decoded: Tensor) -> None:
    expected = [
        peak_signal_noise_ratio(as_8_bit(a), as_8_bit(b), data_range=255)
        for a, b in zip(pictures, decoded, strict=True)
    ]
    assert psnr(decoded, pictures).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_batch_does_not_change_a_pictures_figures(pictures: Tensor, decoded: Tensor) -> None:
    for metric in (psnr, ms_ssim):
        alone = [metric(decoded[i : i + 1], pictures[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(metric(decoded, pictures), torch.cat(alone), rtol=0, atol=1e-6)


def test_identical_pictures_have_infinite_psnr_and_ms_ssim_one(pictures: Tensor) -> None:
    almost = pictures + 0.3 / 255  # rounds to the same 8-bit picture
    assert psnr(almost, pictures).tolist() == [float("inf")] * 3
    assert ms_ssim(almost, pictures).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_ms_ssim_is_that_of_the_8_bit_picture(pictures: Tensor, decoded: Tensor) -> None:
    expected = [numpy_ms_ssim(as_8_bit(a), as_8_bit(b)) for a, b in zip(decoded[1:], pictures[1:], strict=True)]
    assert ms_ssim(decoded, pictures)[1:].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("height", "width", "defined"), [(161, 161, True), (160, 200, False), (200, 160, False)])
def test_ms_ssim_is_left_out_where_the_short_side_is_under_161(
    pictures: Tensor, decoded: Tensor, height: int, width: int, defined: bool
) -> None:
    assert (ms_ssim(decoded[..., :height, :width], pictures[..., :height, :width]) is not None) is defined


def test_every_8_bit_level_survives_and_all_else_goes_to_the_nearest() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    assert to_uint8(torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 7.0])).tolist() == [0, 0, 1, 255, 255]


def test_bpp_counts_each_pictures_bits_over_its_own_pixels() -> None:
    y = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)).clamp_min(1e-9)
    z = torch.full((2, 3, 1, 1), 0.25)  # two bits each
    expected = [(-np.log2(y[i].double().numpy()).sum() + 6) / 5800 for i in range(2)]
    assert bpp({"y": y, "z": z}, pixels_per_picture=5800).tolist() == pytest.approx(expected, rel=1e-6)
