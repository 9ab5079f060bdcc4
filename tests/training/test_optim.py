"""Learning rates against torch's own schedulers, and what the optimizer decays."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from training.optim import Schedule, clipped_together, make_optimizer
from training.scope import set_trainable

LR, TOTAL = 3e-4, 50


def rates_of(schedule: Schedule, steps: int = TOTAL) -> list[float]:
    return [schedule.at(step) for step in range(steps)]


def torch_rates(make: type[LRScheduler], steps: int = TOTAL, **settings: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torch_s() -> None:
    assert rates_of(Schedule("cosine", LR, TOTAL)) == pytest.approx(torch_rates(CosineAnnealingLR, T_max=TOTAL))


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.01])
def test_onecycle_is_torch_s(pct_start: float) -> None:
    theirs = torch_rates(OneCycleLR, max_lr=LR, total_steps=TOTAL, pct_start=pct_start, cycle_momentum=False)
    assert rates_of(Schedule("onecycle", LR, TOTAL, pct_start=pct_start)) == pytest.approx(theirs)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("kind", ["none", "cosine", "onecycle", "plateau"])
def test_the_shortest_runs_have_finite_rates(kind: str, total: int) -> None:
    assert all(0 < rate <= LR for rate in rates_of(Schedule(kind, LR, total), total))


def test_warm_up_is_torch_s_and_ends_at_the_full_rate() -> None:
    theirs = torch_rates(LinearLR, start_factor=1 / 10, total_iters=9)
    assert rates_of(Schedule("none", LR, TOTAL, warmup=10)) == pytest.approx(theirs)


def test_warm_up_multiplies_cosine_and_plateau() -> None:
    warm = [min(1.0, (step + 1) / 10) for step in range(TOTAL)]
    for kind in ("cosine", "plateau"):
        plain = rates_of(Schedule(kind, LR, TOTAL))
        assert rates_of(Schedule(kind, LR, TOTAL, warmup=10)) == pytest.approx(
            [rate * factor for rate, factor in zip(plain, warm, strict=True)]
        )


def test_plateau_halves_after_three_evaluations_without_a_gain_and_only_then() -> None:
    schedule = Schedule("plateau", LR, TOTAL)
    factors = []
    for loss in (1.0, 0.9, 0.89995, 0.95, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7):
        schedule.observe(loss)
        factors.append(schedule.at(0) / LR)
    assert factors == [1, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_improves_downwards_for_losses_below_zero_too() -> None:
    """Without MS-SSIM the validation loss is minus the PSNR."""
    schedule = Schedule("plateau", LR, TOTAL)
    for psnr in (30.0, 30.1, 30.2, 30.3, 30.4, 30.5):
        schedule.observe(-psnr)
    assert schedule.at(0) == LR
    for psnr in (30.5, 30.4, 30.501):
        schedule.observe(-psnr)
    assert schedule.at(0) == LR / 2


def test_plateau_counts_a_loss_that_is_not_a_number_as_no_gain() -> None:
    schedule = Schedule("plateau", LR, TOTAL)
    for loss in (1.0, math.nan, math.nan, math.nan):
        schedule.observe(loss)
    assert schedule.at(0) == LR / 2


@pytest.fixture
def codec() -> Codec:
    codec = new_codec(Architecture(8, 12, g_a=BlockChoice("gdnish")))
    set_trainable(codec, ["g_a", "g_s", "entropy_bottleneck"], train_quantiles=True)
    return codec


def test_only_weights_of_convolutions_are_decayed(codec: Codec) -> None:
    optimizer = make_optimizer(codec, "adamw", LR, 0.1, 1e-3)
    names = {parameter: name for name, parameter in codec.named_parameters()}
    decayed = {names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert {"g_a.0.weight", "g_s.6.weight"} < decayed
    assert all(name.endswith(".weight") and name.startswith(("g_a", "g_s")) for name in decayed)
    kept = set(names.values()) - decayed
    assert {"g_a.0.bias", "g_s.1.beta", "g_s.1.gamma", "entropy_bottleneck.quantiles"} < kept
    assert {name for name in names.values() if name.startswith("entropy_bottleneck")} < kept


def test_every_parameter_that_trains_is_in_one_group(codec: Codec) -> None:
    codec.g_s.requires_grad_(False)
    optimizer = make_optimizer(codec, "adam", LR, 0.0, 1e-3)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in codec.parameters() if p.requires_grad}


def test_the_schedule_moves_the_network_and_leaves_the_quantiles_their_rate(codec: Codec) -> None:
    optimizer = make_optimizer(codec, "adam", LR, 0.0, 1e-3)
    schedule = Schedule("cosine", LR, TOTAL)
    assert schedule.apply(optimizer, 25) == pytest.approx(LR / 2)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    quantiles = codec.entropy_bottleneck.quantiles
    assert rates.pop(quantiles) == 1e-3
    assert set(rates.values()) == {schedule.at(25)}


def test_gains_of_rates_learn_ten_times_as_fast(codec: Codec) -> None:
    codec.add_rates(4)
    optimizer = make_optimizer(codec, "adamw", LR, 0.1, 1e-3)
    schedule = Schedule("cosine", LR, TOTAL)
    for step in (0, 25):
        schedule.apply(optimizer, step)
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        assert codec.y_gains is not None
        assert groups[codec.y_gains.drops]["lr"] == pytest.approx(10 * groups[codec.g_a[0].weight]["lr"])
        assert groups[codec.y_gains.drops]["weight_decay"] == 0


def test_everything_but_the_quantiles_is_clipped_once(codec: Codec) -> None:
    network = set(codec.parameters()) - {codec.entropy_bottleneck.quantiles}
    (together,) = clipped_together(codec, apart=False)
    assert len(together) == len(network)
    assert set(together) == network
    transforms, densities = clipped_together(codec, apart=True)
    assert set(transforms) == {*codec.g_a.parameters(), *codec.g_s.parameters()}
    assert set(densities) == network - set(transforms)
