"""The MS-SSIM that trains is pytorch_msssim's."""

import pytest
import pytorch_msssim
import torch
from torch import Tensor

from training.msssim import ms_ssim


@pytest.mark.parametrize("size", [(161, 176), (224, 224), (255, 193)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_value_and_gradient_are_pytorch_msssim_s(picture: Tensor, size: tuple[int, int], noise: float) -> None:
    x = torch.cat([picture[..., : size[0], : size[1]], picture[..., -size[0] :, -size[1] :]])
    torch.manual_seed(0)
    x_hat = (x + noise * torch.randn_like(x)).clamp(0, 1)

    def of(similarity: object) -> tuple[Tensor, Tensor]:
        leaf = x_hat.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        value = similarity(leaf, x)  # type: ignore[operator]
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    value, gradient = of(lambda a, b: ms_ssim(a, b).mean())
    theirs, their_gradient = of(lambda a, b: pytorch_msssim.ms_ssim(a, b, data_range=1.0))
    # Variances are differences of blurred squares, of which FP32 leaves some 1e-6 to either.
    torch.testing.assert_close(value, theirs, atol=3e-6, rtol=0)
    # At the optimum the gradient is zero, and what is left of it is rounding.
    torch.testing.assert_close(gradient, their_gradient, atol=2e-3 * their_gradient.abs().max() + 1e-8, rtol=0)
