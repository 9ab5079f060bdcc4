"""The training objectives: distortion of the picture plus, except for `recon`, its rate."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from codec.cli import NOT_NEGATIVE, POSITIVE, OptionGroup, option
from codec.description.architecture import STRIDE
from codec.evaluation.metrics import MS_SSIM_MIN_SIZE, bpp
from training.msssim import ms_ssim


def min_input_size(loss_type: str) -> int:
    """The smallest side of a training picture: MS-SSIM's minimum if the loss contains it, else the codec's stride."""
    return STRIDE if loss_type == "mse" else MS_SSIM_MIN_SIZE


@dataclass(frozen=True)
class RateDistortion(OptionGroup):
    """The objective of `--loss_type`, for pictures in [0, 1]; always computed in FP32, also under autocast.

        recon = alpha_l1 * L1 + (1 - alpha_l1) * (1 - MS-SSIM)
        rd    = recon + lambda_bpp * bpp
        mse   = lambda_mse * 255^2 * MSE + bpp

    L1 and MSE are means over all values of x_hat, which is not clamped;
    bpp = sum(-log2 likelihood) / (N*H*W) for N pictures of H x W. Sources: Zhao et al., arXiv 1511.08861 (L1
    and MS-SSIM, there as 0.16 to 0.84); Balle et al., arXiv 1802.01436 (`mse`, scaled as in CompressAI).
    """

    loss_type: Literal["recon", "rd", "mse"] = option(
        "recon", "recon: a*L1+(1-a)*(1-MS-SSIM); rd: recon+lambda_bpp*bpp; mse: lambda_mse*255^2*MSE+bpp", decides=True
    )
    alpha_l1: float = option(
        0.4,
        "a in recon and rd",
        rule=(lambda value: 0 <= value <= 1, "is a share and must be within 0..1"),
        decides=True,
    )
    lambda_bpp: float = option(0.01, "weight of the rate in rd", rule=NOT_NEGATIVE, decides=True)
    lambda_mse: float = option(
        0.01, "weight of the distortion in mse", rule=POSITIVE, decides=True, only_with=("loss_type", ("mse",))
    )

    @property
    def detaches_rate(self) -> bool:
        """Whether the likelihoods must be computed from a detached y, so that the rate trains no transform."""
        return self.loss_type == "recon"

    def recon(self, l1: Any, similarity: Any) -> Any:
        """The distortion of `recon` and `rd` from L1 and MS-SSIM, tensors or numbers."""
        return self.alpha_l1 * l1 + (1 - self.alpha_l1) * (1 - similarity)

    def rd(self, l1: Any, similarity: Any, rate: Any) -> Any:
        """The objective `rd` from L1, MS-SSIM and bits per pixel, tensors or numbers."""
        return self.recon(l1, similarity) + self.lambda_bpp * rate

    def __call__(self, out: dict[str, Any], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to differentiate, and figures to report.

        Args:
            out: `x_hat` [B, 3, H, W] and `likelihoods`, tensors [B, C, h, w] by name.
            x: the pictures, [B, 3, H, W] in [0, 1].

        Returns:
            The loss, 0-dim: the objective. For `recon`, bpp is added if the entropy model trains; y is detached then,
            so bpp trains only that model. And 0-dim, detached FP32 figures on x's device: `loss` (only the objective),
            `bpp`, `mse` (x_hat not clamped), `psnr` (dB, mean over pictures; x_hat is clamped but not rounded, so it
            differs from the evaluation's), and, except for `mse`, `l1` and `ms_ssim`.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, x_hat = x.float(), out["x_hat"].float()
            clamped = x_hat.clamp(0, 1)
            rate = bpp(out["likelihoods"], x.shape[-2] * x.shape[-1]).mean()
            mse = (x_hat - x).square().mean()
            per_picture = (clamped.detach() - x).square().mean((1, 2, 3))
            figures = {"bpp": rate, "mse": mse, "psnr": -10 * per_picture.log10().mean()}
            if self.loss_type == "mse":
                loss = self.lambda_mse * 255**2 * mse + rate
            else:
                # Outside [0, 1] the clamp stops MS-SSIM's gradient; L1 still has a gradient there.
                l1, similarity = (x_hat - x).abs().mean(), ms_ssim(clamped, x)
                figures |= {"l1": l1, "ms_ssim": similarity}
                loss = self.rd(l1, similarity, rate) if self.loss_type == "rd" else self.recon(l1, similarity)
            total = loss + rate if self.detaches_rate and rate.requires_grad else loss
            return total, {name: figure.detach() for name, figure in {"loss": loss, **figures}.items()}
