"""What a codec costs, against sums by hand."""

import pytest

from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec
from codec.network.complexity import costs, training_flops

N, M = 8, 12
RELU = BlockChoice("relu")


def macs_by_hand(side: int) -> list[int]:
    """Of each convolution: 25 taps, times channels in, channels out and the positions where the kernel is put."""
    shapes = [(3, N, 2), (N, N, 4), (N, N, 8), (N, M, 16), (M, N, 16), (N, N, 8), (N, N, 4), (N, 3, 2)]
    return [25 * before * after * (side // stride) ** 2 for before, after, stride in shapes]


def test_a_step_is_three_times_its_forward_but_for_the_pictures_gradient() -> None:
    macs = macs_by_hand(64)
    counted = training_flops(new_codec(Architecture(N, M, RELU, RELU)), 5, 64)
    assert counted == 2 * 5 * (3 * sum(macs) - macs[0])


def test_macs_per_pixel_are_those_of_the_published_widths() -> None:
    relu, gdn = costs(Architecture(192, 320, RELU, RELU)), costs(Architecture(192, 320))
    assert relu["g_a"][1] == pytest.approx(81_600, rel=1e-3)
    assert gdn["g_a"][1] == pytest.approx(93_700, rel=1e-3)
    assert relu["g_s"][1] == pytest.approx(81_600, rel=1e-3)
    assert relu.keys() == {"g_a", "g_s"}


def test_a_hyperprior_costs_what_its_layers_cost() -> None:
    own = costs(Architecture(192, 320, arch="bmshj2018_hyperprior"))
    h_a = 9 * 320 * 192 / 256 + 25 * 192 * 192 * (1 / 1024 + 1 / 4096)
    h_s = 25 * 192 * 192 * (1 / 4096 + 1 / 1024) + 9 * 192 * 320 / 256  # a deconvolution: taps times its inputs
    assert own["h_a"][1] == pytest.approx(h_a)
    assert own["h_s"][1] == pytest.approx(h_s)
    assert own["g_a"] == costs(Architecture(192, 320))["g_a"]
