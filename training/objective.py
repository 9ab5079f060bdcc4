"""The training objectives: distortion of the picture plus, except for `recon`, its rate."""

import argparse
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from codec.cli import NOT_NEGATIVE, POSITIVE, OptionGroup, Rule, option
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.evaluation.metrics import MS_SSIM_MIN_SIZE, bpp
from training.msssim import ms_ssim


@dataclass(frozen=True)
class Terms:
    """What the formula of a loss contains.

    Attributes:
        ms_ssim: MS-SSIM, which needs pictures of a minimum size.
        rate: the rate, which then trains the transforms too.
        weighted: the term that lambda multiplies, and so the name of the option: `lambda_bpp` or `lambda_mse`.
    """

    ms_ssim: bool
    rate: bool
    weighted: Literal["bpp", "mse"]


LOSSES = {
    "recon": Terms(ms_ssim=True, rate=False, weighted="bpp"),
    "rd": Terms(ms_ssim=True, rate=True, weighted="bpp"),
    "mse": Terms(ms_ssim=False, rate=True, weighted="mse"),
}
"""By the name that `--loss_type` takes."""


def min_input_size(loss_type: str) -> int:
    """The smallest side of a training picture: MS-SSIM's minimum if the loss contains it, else the codec's stride."""
    return MS_SSIM_MIN_SIZE if LOSSES[loss_type].ms_ssim else STRIDE


def lambda_of(text: str) -> float | str:
    """A lambda, or a range LOW:HIGH, for argparse."""
    if ":" not in text:
        return float(text)
    try:
        return ":".join(repr(float(end)) for end in _both(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range LOW:HIGH") from None


def _both(text: str) -> tuple[str, str]:
    low, high = text.split(":")
    return low, high


def _ends(weight: float | str) -> tuple[float, float]:
    """The smallest and the largest lambda of an option's value."""
    if isinstance(weight, str):
        low, high = map(float, _both(weight))
        return low, high
    return weight, weight


def _every(rule: Rule) -> Rule:
    """The rule for both ends of a range."""
    holds, words = rule
    return (lambda value: all(map(holds, _ends(value)))), words


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
    lambda_bpp: float | str = option(
        0.01,
        "weight of the rate in rd; LOW:HIGH with --rates",
        rule=_every(NOT_NEGATIVE),
        parse=lambda_of,
        decides=True,
    )
    lambda_mse: float | str = option(
        0.01,
        "weight of the distortion in mse; LOW:HIGH with --rates",
        rule=_every(POSITIVE),
        parse=lambda_of,
        decides=True,
        only_with=("loss_type", ("mse",)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lambda_bpp, str) and self.loss_type != "rd":
            raise InputError(
                f"--lambda_bpp {self.lambda_bpp}: a range needs --loss_type rd; with mse it is --lambda_mse"
            )
        if isinstance(self.weight, str) and not 0 < self.ends[0] < self.ends[1]:
            raise InputError(f"--{self.weight_name} {self.weight}: a range is LOW:HIGH, 0 < LOW < HIGH")

    @property
    def terms(self) -> Terms:
        """What the loss contains."""
        return LOSSES[self.loss_type]

    @property
    def weight_name(self) -> str:
        """The option that is the lambda of the loss."""
        return f"lambda_{self.terms.weighted}"

    @property
    def weight(self) -> float | str:
        """The lambda of the loss, or its range."""
        found: float | str = getattr(self, self.weight_name)
        return found

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest lambda."""
        return _ends(self.weight)

    @property
    def detaches_rate(self) -> bool:
        """Whether the likelihoods must be computed from a detached y, so that the rate trains no transform."""
        return not self.terms.rate

    def recon(self, l1: Any, similarity: Any) -> Any:
        """The distortion of `recon` and `rd` from L1 and MS-SSIM, tensors or numbers."""
        return self.alpha_l1 * l1 + (1 - self.alpha_l1) * (1 - similarity)

    def rd(self, l1: Any, similarity: Any, rate: Any) -> Any:
        """The objective `rd` from L1, MS-SSIM and bits per pixel, tensors or numbers; of a range, at its middle."""
        return self.recon(l1, similarity) + math.sqrt(math.prod(_ends(self.lambda_bpp))) * rate

    def lambdas(self, rates: Tensor) -> Tensor:
        """The lambda of each rate [B] within 0..1: geometric, and at rate 1 that of the best quality."""
        low, high = self.ends if self.terms.weighted == "mse" else self.ends[::-1]
        return low * (high / low) ** rates

    def of_rates(self, distortion: Tensor, rate: Tensor, rates: Tensor) -> Tensor:
        """The loss of pictures at several rates, from their distortion and rate [B].

        The loss of a picture at lambda is weighted with (lambda / middle)^-1/2. The bits of a picture grow about so
        with lambda: a percent of them counts the same at every rate.
        """
        low, high = self.ends
        lambdas = self.lambdas(rates)
        losses = lambdas * distortion + rate if self.terms.weighted == "mse" else distortion + lambdas * rate
        return (losses * (lambdas / math.sqrt(low * high)) ** -0.5).mean()

    def __call__(self, out: dict[str, Any], x: Tensor, rates: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to differentiate, and figures to report.

        Args:
            out: `x_hat` [B, 3, H, W] and `likelihoods`, tensors [B, C, h, w] by name.
            x: the pictures, [B, 3, H, W] in [0, 1].
            rates: the rate of each picture [B] within 0..1, for a codec of several rates.

        Returns:
            The loss, 0-dim: the objective. For `recon`, bpp is added if the entropy model trains; y is detached then,
            so bpp trains only that model. And 0-dim, detached FP32 figures on x's device: `loss` (only the objective),
            `bpp`, `mse` (x_hat not clamped), `psnr` (dB, mean over pictures; x_hat is clamped but not rounded, so it
            differs from the evaluation's), and, except for `mse`, `l1` and `ms_ssim`.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, x_hat = x.float(), out["x_hat"].float()
            clamped = x_hat.clamp(0, 1)
            bits = bpp(out["likelihoods"], x.shape[-2] * x.shape[-1])
            rate = bits.mean()
            mse = (x_hat - x).square().mean()
            per_picture = (clamped.detach() - x).square().mean((1, 2, 3))
            figures = {"bpp": rate, "mse": mse, "psnr": -10 * per_picture.log10().mean()}
            if self.loss_type == "mse":
                if rates is None:
                    loss = self.lambda_mse * 255**2 * mse + rate
                else:
                    loss = self.of_rates(255**2 * (x_hat - x).square().mean((1, 2, 3)), bits, rates)
            else:
                # Outside [0, 1] the clamp stops MS-SSIM's gradient; L1 still has a gradient there.
                each = ms_ssim(clamped, x)
                l1, similarity = (x_hat - x).abs().mean(), each.mean()
                figures |= {"l1": l1, "ms_ssim": similarity}
                if rates is not None:
                    distortion = self.recon((x_hat - x).abs().mean((1, 2, 3)), each.mean(1))
                    loss = self.of_rates(distortion, bits, rates)
                else:
                    loss = self.rd(l1, similarity, rate) if self.loss_type == "rd" else self.recon(l1, similarity)
            total = loss + rate if self.detaches_rate and rate.requires_grad else loss
            return total, {name: figure.detach() for name, figure in {"loss": loss, **figures}.items()}
