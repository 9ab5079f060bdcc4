"""The three objectives are the contract's formulas, in FP32, and send their gradients where the contract says."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor

from codec.errors import InputError
from codec.evaluation.metrics import ms_ssim
from training.objective import RateDistortion, min_input_size

A, LAMBDA_BPP, LAMBDA_MSE = 0.4, 0.05, 0.013
SIZE = 176


def objective(loss_type: str) -> RateDistortion:
    return RateDistortion(loss_type, alpha_l1=A, lambda_bpp=LAMBDA_BPP, lambda_mse=LAMBDA_MSE)


@pytest.fixture(scope="module")
def x() -> Tensor:
    folder = Path(skimage.__file__).parent / "data"
    crops = [np.asarray(Image.open(folder / name).convert("RGB"))[50:, 60:] for name in ("coffee.png", "chelsea.png")]
    return torch.stack([torch.tensor(crop[:SIZE, :SIZE]).permute(2, 0, 1) for crop in crops]).float() / 255


@pytest.fixture
def out(x: Tensor) -> dict:
    """A decoded batch on 8-bit levels within [0, 1], from leaves that stand for the decoder and the entropy model."""
    random = torch.Generator().manual_seed(0)
    spoilt = x + 0.05 * torch.randn(x.shape, generator=random)
    x_hat = ((spoilt.clamp(0, 1) * 255).round() / 255).requires_grad_()
    likelihoods = torch.rand(2, 6, SIZE // 16, SIZE // 16, generator=random).clamp_min(1e-9).requires_grad_()
    return {"x_hat": x_hat, "likelihoods": {"y": likelihoods}}


def expected_figures(out: dict, x: Tensor) -> dict[str, float]:
    x_hat, true = out["x_hat"].detach().double().numpy(), x.double().numpy()
    likelihoods = out["likelihoods"]["y"].detach().double().numpy()
    mse = np.mean((x_hat - true) ** 2)
    return {
        "bpp": -np.log2(likelihoods).sum() / (2 * SIZE * SIZE),
        "mse": mse,
        "psnr": np.mean(10 * np.log10(1 / np.mean((x_hat - true) ** 2, (1, 2, 3)))),  # over pictures, not the batch
        "l1": np.abs(x_hat - true).mean(),
        "ms_ssim": ms_ssim(out["x_hat"].detach(), x).mean().item(),  # itself held against numpy in test_metrics
    }


@pytest.mark.parametrize("loss_type", ["recon", "rd", "mse"])
def test_each_objective_is_its_formula(loss_type: str, out: dict, x: Tensor) -> None:
    total, figures = objective(loss_type)(out, x)
    want = expected_figures(out, x)
    recon = A * want["l1"] + (1 - A) * (1 - want["ms_ssim"])
    want["loss"] = {
        "recon": recon,
        "rd": recon + LAMBDA_BPP * want["bpp"],
        "mse": LAMBDA_MSE * 255**2 * want["mse"] + want["bpp"],
    }[loss_type]
    for name, figure in figures.items():
        assert figure.item() == pytest.approx(want[name], rel=2e-5), name
        assert figure.shape == ()
        assert figure.dtype == torch.float32
        assert not figure.requires_grad
    assert figures.keys() == want.keys() - ({"l1", "ms_ssim"} if loss_type == "mse" else set())
    on_top = want["bpp"] if loss_type == "recon" else 0.0
    assert total.item() == pytest.approx(want["loss"] + on_top, rel=2e-5)


def test_recon_teaches_the_entropy_model_the_plain_bpp_and_the_picture_only_recon(out: dict, x: Tensor) -> None:
    assert objective("recon").detaches_rate
    total, figures = objective("recon")(out, x)
    likelihoods, x_hat = out["likelihoods"]["y"], out["x_hat"]
    to_picture, to_rate = torch.autograd.grad(total, [x_hat, likelihoods])
    expected = -1 / (likelihoods.detach() * np.log(2) * 2 * SIZE * SIZE)  # d bpp / d likelihood
    torch.testing.assert_close(to_rate, expected)

    frozen = {"x_hat": x_hat, "likelihoods": {"y": likelihoods.detach()}}
    total, _ = objective("recon")(frozen, x)
    assert total.item() == figures["loss"].item()
    torch.testing.assert_close(torch.autograd.grad(total, x_hat)[0], to_picture)


@pytest.mark.parametrize("loss_type", ["rd", "mse"])
def test_the_rate_reaches_the_encoder_in_the_other_objectives(loss_type: str, out: dict, x: Tensor) -> None:
    assert not objective(loss_type).detaches_rate
    total, _ = objective(loss_type)(out, x)
    weight = {"rd": LAMBDA_BPP, "mse": 1.0}[loss_type]
    likelihoods = out["likelihoods"]["y"]
    (gradient,) = torch.autograd.grad(total, likelihoods)
    torch.testing.assert_close(gradient, -weight / (likelihoods.detach() * np.log(2) * 2 * SIZE * SIZE))


@pytest.mark.parametrize("loss_type", ["recon", "rd", "mse"])
def test_autocast_and_half_precision_outputs_are_computed_in_fp32(loss_type: str, out: dict, x: Tensor) -> None:
    half = {
        "x_hat": out["x_hat"].bfloat16(),
        "likelihoods": {"y": out["likelihoods"]["y"].bfloat16()},
    }
    same = {"x_hat": half["x_hat"].float(), "likelihoods": {"y": half["likelihoods"]["y"].float()}}
    with torch.autocast("cpu", torch.bfloat16):
        total, figures = objective(loss_type)(half, x)
    expected, expected_figures_ = objective(loss_type)(same, x)
    assert total.dtype == torch.float32
    assert total.item() == expected.item()
    assert figures == expected_figures_


@pytest.mark.parametrize("loss_type", ["recon", "rd", "mse"])
def test_values_outside_the_picture_range_are_pulled_back(loss_type: str, out: dict, x: Tensor) -> None:
    x_hat = out["x_hat"].detach() + torch.tensor([2.0, -2.0]).view(2, 1, 1, 1)
    x_hat.requires_grad_()
    total, figures = objective(loss_type)({**out, "x_hat": x_hat}, x)
    (gradient,) = torch.autograd.grad(total, x_hat)
    assert (gradient[0] > 0).all()
    assert (gradient[1] < 0).all()
    assert figures["mse"] > 3  # the training objective sees how far outside; the picture that one would save does not
    assert figures["psnr"] > 0


@pytest.mark.parametrize("loss_type", ["recon", "rd"])
def test_a_negative_of_the_picture_has_finite_loss_and_gradients(loss_type: str, out: dict, x: Tensor) -> None:
    """Its structural similarity is below zero, where the powers of MS-SSIM have no value."""
    x_hat = (1 - x).requires_grad_()
    total, _ = objective(loss_type)({**out, "x_hat": x_hat}, x)
    (gradient,) = torch.autograd.grad(total, x_hat)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("loss_type", ["recon", "rd", "mse"])
def test_the_least_input_size_is_the_least_that_works(loss_type: str, out: dict, x: Tensor) -> None:
    def loss_at(size: int) -> Tensor:
        part = {**out, "x_hat": out["x_hat"][..., :size, :size]}
        return objective(loss_type)(part, x[..., :size, :size])[0]

    least = min_input_size(loss_type)
    assert torch.isfinite(loss_at(least))
    if loss_type == "mse":
        assert least == 16  # not the loss's limit: the codec's stride
    else:
        with pytest.raises(AssertionError, match="larger than 160"):
            loss_at(least - 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"loss_type": "psnr"}, "--loss_type psnr"),
        ({"alpha_l1": 1.5}, "--alpha_l1 1.5"),
        ({"alpha_l1": float("nan")}, "--alpha_l1 nan"),
        ({"lambda_bpp": -0.1}, "--lambda_bpp -0.1"),
        ({"lambda_mse": float("inf")}, "--lambda_mse inf"),
    ],
)
def test_impossible_weights_are_refused_by_name(wrong: dict, named: str) -> None:
    values = {"loss_type": "rd", "alpha_l1": A, "lambda_bpp": LAMBDA_BPP, "lambda_mse": LAMBDA_MSE}
    with pytest.raises(InputError, match=named):
        RateDistortion(**{**values, **wrong})
