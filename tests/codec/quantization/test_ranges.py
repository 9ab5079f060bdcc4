"""Fitted ranges: rounding and clipping together cost as little as any range around the observed one allows."""

import pytest
import torch
from quantized_codecs import make, ranges, step
from torch import Tensor, nn

from codec.description.architecture import Phase, Quantization
from codec.quantization.calibrate import fit_activations
from codec.quantization.observers import OBSERVERS
from codec.quantization.phases import enter
from codec.quantization.quantizers import ActivationQuantizer, Switches
from codec.quantization.ranges import WIDTHS, fit_ranges, margin


def observed(values: Tensor, observer: str = "minmax") -> ActivationQuantizer:
    """A quantizer, still in float, with the range of values [B, N]."""
    quantizer = ActivationQuantizer(Switches(), OBSERVERS[observer])
    quantizer(values)
    quantizer.update_range(quantizer.batch.clone())
    quantizer.switches.learn = False
    return quantizer


def cost(quantizer: ActivationQuantizer, values: Tensor) -> float:
    """The mean squared error of the quantizer with its present range."""
    quantizer.fix_scale()
    quantizer.switches.quantize = True
    error = float((quantizer(values) - values).double().square().mean())
    quantizer.switches.quantize = False
    return error


def test_rare_values_are_clipped_with_a_margin_from_the_best_width() -> None:
    torch.manual_seed(0)
    batches = list(torch.randn(16, 4, 16 * 1024))
    batches[3][0, 0], batches[7][0, 0] = 12.0, -12.0
    values = torch.cat(batches)
    quantizer = observed(values)
    (low, high), costs = (quantizer.low.clone(), quantizer.high.clone()), []
    for width in WIDTHS:
        quantizer.low.copy_(width * low)
        quantizer.high.copy_(width * high)
        costs.append(cost(quantizer, values))
    best = WIDTHS[costs.index(min(costs))]
    quantizer.low.copy_(low)
    quantizer.high.copy_(high)
    fit_ranges(nn.Sequential(quantizer), batches, nn.Identity())
    assert best < 0.5
    assert float(quantizer.high / high) == float(quantizer.low / low) == pytest.approx(margin(64) * best)
    assert cost(quantizer, values) < costs[WIDTHS.index(1.0)]


def test_values_that_fill_their_range_keep_it_with_the_margin() -> None:
    """The more pictures, the smaller it is."""
    values = torch.linspace(-1, 3, 32 * 1024)[None]
    for times in (1, 64):
        quantizer = observed(values)
        fit_ranges(nn.Sequential(quantizer), [values] * times, nn.Identity())
        assert (float(quantizer.low), float(quantizer.high)) == pytest.approx((-margin(times), 3 * margin(times)))
    assert margin(64) < margin(1)


def test_a_range_that_clips_too_much_grows() -> None:
    """`ema` learned it from quiet pictures."""
    quiet, loud = torch.linspace(-1, 1, 1024)[None], torch.linspace(-2, 2, 1024)[None]
    quantizer = observed(quiet, "ema")
    fit_ranges(nn.Sequential(quantizer), [quiet, loud], nn.Identity())
    assert float(quantizer.high) == pytest.approx(2 * margin(2))


@pytest.mark.parametrize(("bound", "width"), [(0.5, 0.5), (2.0, 1.0)])
def test_values_on_which_the_result_does_not_depend_may_be_clipped(bound: float, width: float) -> None:
    values = torch.linspace(-1, 1, 32 * 1024)[None]
    quantizer = observed(values)
    fit_ranges(nn.Sequential(quantizer), [values] * 64, lambda y: y.clamp(-bound, bound))
    assert float(quantizer.high) == pytest.approx(width * margin(64), rel=0.1)


def test_a_tensor_without_an_effect_is_fitted_by_its_own_error() -> None:
    values = torch.linspace(-1, 1, 1024)[None]
    quantizer = observed(values)
    fit_ranges(nn.Sequential(quantizer), [2 * values], lambda y: 0 * y)
    assert float(quantizer.high) == pytest.approx(2 * margin(1))


def test_given_ranges_and_16_bits_stay_and_learned_ones_do_not(pictures: list[Tensor]) -> None:
    codec = make("gate", Quantization("all", act_observer="minmax", a16="g_a.after_2"))
    for x in pictures:
        step(codec, x)
    enter(codec, Phase.FIXED_SCALE)
    before = ranges(codec)
    fit_activations(codec, pictures)
    after = ranges(codec)
    stay = {name for name in before if before[name] == after[name]}
    assert {"g_a.quantizers.input", "g_a.quantizers.after_2", "g_s.quantizers.after_6"} <= stay
    assert len(stay) < len(before)
    assert all(codec.get_submodule(name).scale > 0 for name in after)


def test_ranges_that_must_not_learn_are_not_fitted(pictures: list[Tensor]) -> None:
    codec = make("gate", Quantization("all"))
    step(codec, pictures[0])
    enter(codec, Phase.FIXED_SCALE, learning=False)
    before = ranges(codec)
    fit_activations(codec, pictures)
    assert ranges(codec) == before
