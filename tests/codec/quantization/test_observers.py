"""Observers: the ranges that they learn; a new one costs a class and its name."""

import pytest
import torch
from quantized_codecs import M, N, make, ranges, step
from torch import Tensor

from codec.description.architecture import Architecture, Quantization
from codec.errors import InputError
from codec.network.bottleneck import noise_keys
from codec.quantization.observers import OBSERVERS, MinMax
from codec.quantization.phases import build, learn_ranges
from codec.quantization.quantizers import ActivationQuantizer, Switches
from training.options import parse


@pytest.mark.parametrize("observer", ["ema", "minmax"])
def test_observers(observer: str) -> None:
    quantizer = ActivationQuantizer(Switches(), OBSERVERS[observer])
    steps = [[[-1.0, 3.0], [-2.0, 5.0]], [[-3.0, 1.0]], [[0.5, 1.0]]]  # of two pictures, of one, of one
    for pictures in steps:
        for picture in pictures:
            quantizer(torch.tensor([picture]))
        quantizer.update_range(quantizer.batch.clone())
    expected = ((-1.5 - 3 + 0.5) / 3, (4 + 1 + 1) / 3) if observer == "ema" else (-3, 5)
    assert (float(quantizer.low), float(quantizer.high)) == pytest.approx(expected)


@pytest.mark.parametrize("observer", ["ema", "minmax"])
def test_a_skipped_step_leaves_everything_as_it_is(observer: str) -> None:
    """The first step too: the range is learned from the other two alone, whatever was seen in between."""
    quantizer, other = (ActivationQuantizer(Switches(), OBSERVERS[observer]) for _ in range(2))
    for skipped, picture in ((1, [float("nan"), 9.0]), (0, [-1.0, 3.0]), (1, [-9.0, float("inf")]), (0, [-3.0, 1.0])):
        quantizer(torch.tensor([picture]))
        quantizer.update_range(quantizer.batch.clone(), torch.tensor(bool(skipped)))
        if not skipped:
            other(torch.tensor([picture]))
            other.update_range(other.batch.clone())
    assert all(map(torch.equal, quantizer.buffers(), other.buffers()))
    assert float(quantizer.steps) == 2


def test_a_moving_average_forgets() -> None:
    quantizer = ActivationQuantizer(Switches(), OBSERVERS["ema"])
    for low in [-100.0] + 1000 * [-1.0]:
        quantizer.update_range(torch.tensor([low, 1.0, 1.0]))
    assert -1.1 < float(quantizer.low) < -1.0


def test_micro_batches_of_a_step_count_as_one_batch(pictures: list[Tensor]) -> None:
    whole, parts = (make("gate", Quantization("all")) for _ in range(2))
    for x in pictures[:2]:
        keys = noise_keys(0, 0, torch.arange(2))
        whole(x, keys)
        for i in (0, 1):
            parts(x[i : i + 1], keys[i : i + 1])
        learn_ranges(whole)
        learn_ranges(parts)
    for name, (low, high) in ranges(whole).items():
        assert ranges(parts)[name] == pytest.approx((low, high), rel=1e-5, abs=1e-6), name


class Latest(MinMax):
    """The extremes of the last step alone."""

    def move(self, kept: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], steps: Tensor) -> tuple[Tensor, Tensor]:
        return seen


def test_a_new_observer_costs_a_class_and_its_name(pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBSERVERS, "latest", Latest())
    assert parse(["--coco_dir", "x", "--qat", "true", "--qat_act_observer", "latest"]).qat.qat_act_observer == "latest"
    reductions: list[str] = []
    codec, last = (make("relu", Quantization("all", act_observer="latest")) for _ in range(2))
    for x in pictures[:2]:
        codec(x, noise_keys(0, 0, torch.arange(2)))
        learn_ranges(codec, lambda _, reduction: reductions.append(reduction))
    step(last, pictures[1])
    assert ranges(codec) == ranges(last)
    assert reductions == ["max", "max"]


def test_an_unknown_observer_of_a_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="observer 'mse' is unknown; this version has ema, minmax"):
        build(Architecture(N, M, quantization=Quantization("all", act_observer="mse")))
