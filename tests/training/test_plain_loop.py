"""A run of one rate takes the steps of a plain PyTorch loop with CompressAI's model."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from compressai.models import FactorizedPrior
from programs import ROUNDING, TINY, distance, into, train, weights
from pytorch_msssim import ms_ssim
from torch import Tensor

from codec.network.bottleneck import uniform_noise
from training.options import parse
from training.setup import set_up

pytestmark = pytest.mark.slow

LR, STEPS = 1e-3, 3


def objective(loss_type: str, x: Tensor, x_hat: Tensor, bpp: Tensor) -> Tensor:
    if loss_type == "mse":
        return 0.01 * 255**2 * (x_hat - x).square().mean() + bpp
    similarity = ms_ssim(x_hat.clamp(0, 1), x, data_range=1.0)
    return 0.4 * (x_hat - x).abs().mean() + 0.6 * (1 - similarity) + 0.02 * bpp


@pytest.mark.parametrize(("loss_type", "side"), [("mse", 64), ("rd", 176)])
def test_three_steps_are_those_of_a_plain_loop(loss_type: str, side: int, coco224: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = FactorizedPrior(8, 12)
    torch.save(plain.state_dict(), tmp_path / "start.pth.tar")
    words = [
        "--coco_dir",
        coco224,
        *TINY[TINY.index("--num_workers") :],
        "--init_checkpoint",
        tmp_path / "start.pth.tar",
    ]
    words += ["--act", "gdn", "--train_scope", "all", "--lr", LR, "--max_steps", STEPS]
    words += ["--loss_type", loss_type, "--input_size", side, "--lambda_bpp", 0.02, "--batch_size", 4]
    assert train(*words, *into(tmp_path / "run")) == 0

    # Pictures and noise of a step are the trainer's own; model, loss and optimizer are not.
    batches = set_up(parse([str(word) for word in words])).micro_batches
    quantiles = plain.entropy_bottleneck.quantiles
    network = [parameter for parameter in plain.parameters() if parameter is not quantiles]
    optimizer = torch.optim.Adam([{"params": network, "lr": LR}, {"params": [quantiles], "lr": 1e-3}])
    for batch in islice(batches, STEPS):
        x = batch.images.float() / 255
        y = plain.g_a(x)
        y_hat = y + uniform_noise(batch.keys, y.shape[1:])
        likelihoods, _, _ = plain.entropy_bottleneck._likelihood(y_hat.transpose(0, 1).reshape(12, 1, -1))
        bpp = -plain.entropy_bottleneck.likelihood_lower_bound(likelihoods).log2().sum() / x[:, 0].numel()
        optimizer.zero_grad()
        (objective(loss_type, x, plain.g_s(y_hat), bpp) + plain.aux_loss()).backward()
        torch.nn.utils.clip_grad_norm_(network, 1.0)
        optimizer.step()
    trained = weights(tmp_path / "run")
    assert (
        distance(trained, {name: tensor for name, tensor in plain.state_dict().items() if name in trained}) < ROUNDING
    )
