"""The two ways in which people train this codec today, written from their documented use with stock modules."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from compressai.datasets import ImageFolder
from compressai.losses import RateDistortionLoss
from compressai.models import FactorizedPrior
from compressai.zoo import bmshj2018_factorized
from pytorch_msssim import ms_ssim
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from codec.blocks import block_named, make_options

SIDE = 224


class CompressAIWay:
    """CompressAI's example trainer: FP32, contiguous, a folder of PNG files, two Adams, clipping, prints.

    Args:
        folder: holds `train/*.png`.
    """

    def __init__(self, folder: Path, quality: int, batch_size: int, device: torch.device, lmbda: float = 0.01) -> None:
        self.device = device
        self.model = bmshj2018_factorized(quality, pretrained=False).to(device).train()
        self.batches = _forever(_loader(folder, batch_size, device))
        network = [p for name, p in self.model.named_parameters() if not name.endswith(".quantiles")]
        quantiles = [p for name, p in self.model.named_parameters() if name.endswith(".quantiles")]
        self.optimizer = torch.optim.Adam(network, lr=1e-4)
        self.aux_optimizer = torch.optim.Adam(quantiles, lr=1e-3)
        self.criterion = RateDistortionLoss(lmbda=lmbda)
        self.steps = 0

    def step(self) -> None:
        """One iteration of its `train_one_epoch`."""
        d = next(self.batches).to(self.device)
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        out_criterion = self.criterion(self.model(d), d)
        out_criterion["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        aux_loss = self.model.aux_loss()
        aux_loss.backward()
        self.aux_optimizer.step()
        if self.steps % 10 == 0:
            figures = {name: value.item() for name, value in out_criterion.items()} | {"aux": aux_loss.item()}
            print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        self.steps += 1


class RecipeWay:
    """GDNishLite in both transforms, `rd` with MS-SSIM: bf16 autocast, contiguous, JPEG crops, `.item()` each step.

    Its `torch.save`, once an epoch, is left out: over COCO's 7,000 steps of an epoch it costs nothing.

    Args:
        folder: holds `train/*.jpg`.
    """

    def __init__(self, folder: Path, quality: int, batch_size: int, device: torch.device) -> None:
        self.device = device
        stock = bmshj2018_factorized(quality, pretrained=False)
        self.model = gdnish_codec(stock.N, stock.M).to(device).train()
        self.batches = _forever(_loader(folder, batch_size, device))
        self.optimizer = torch.optim.AdamW(
            [p for name, p in self.model.named_parameters() if not name.endswith(".quantiles")], lr=1e-4
        )
        self.aux_optimizer = torch.optim.Adam([self.model.entropy_bottleneck.quantiles], lr=1e-3)
        self.figures: dict[str, float] = {}

    def step(self) -> None:
        """One optimizer step."""
        x = next(self.batches).to(self.device)
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.model(x)
        x_hat, likelihoods = out["x_hat"].float(), out["likelihoods"]["y"].float()
        l1 = (x_hat - x).abs().mean()
        similarity = ms_ssim(x_hat.clamp(0, 1), x, data_range=1.0)
        bpp = -likelihoods.log2().sum() / (len(x) * SIDE * SIDE)
        loss = 0.4 * l1 + 0.6 * (1 - similarity) + 0.01 * bpp
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        aux_loss = self.model.aux_loss()
        aux_loss.backward()
        self.aux_optimizer.step()
        named = {"loss": loss, "l1": l1, "ms_ssim": similarity, "bpp": bpp, "aux": aux_loss}
        self.figures = {name: value.item() for name, value in named.items()}


def gdnish_codec(N: int, M: int) -> FactorizedPrior:
    """CompressAI's own model with GDNishLite in the place of each GDN and IGDN."""
    model = FactorizedPrior(N, M)
    block, options = block_named("gdnish"), make_options("gdnish", {})
    for transform, form in ((model.g_a, block.encoder), (model.g_s, block.decoder)):
        for i in range(1, len(transform), 2):
            transform[i] = form(N, options)
    return model


def _loader(folder: Path, batch_size: int, device: torch.device) -> DataLoader[Tensor]:
    transform = transforms.Compose([transforms.RandomCrop(SIDE), transforms.ToTensor()])
    pictures = ImageFolder(str(folder), split="train", transform=transform)
    return DataLoader(
        pictures, batch_size, shuffle=True, num_workers=4, drop_last=True, pin_memory=device.type == "cuda"
    )


def _forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    return itertools.chain.from_iterable(itertools.repeat(loader))
