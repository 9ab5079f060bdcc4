"""Wide channels of y, which several channels of the chip hold."""

import copy
from pathlib import Path

import pytest
import torch
from quantized_codecs import M, make
from safetensors.torch import load_file
from torch import Tensor

from codec.checkpoint import Description, load_codec, save_codec
from codec.description.architecture import MOST_SPLITS, Quantization
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import COARSEST, levels_of
from codec.quantization.phases import in_float
from codec.quantization.splits import HIGHEST, LOWEST, apart, offset, shared_and_more, together

WIDE = {2: 90.0, 7: 120.0, 8: 600.0}
"""Channels of y, and how much larger than the others their values are."""


@pytest.fixture(scope="module")
def plain() -> Codec:
    codec = make(arch="mbt2018_mean")
    with torch.no_grad():
        for channel, factor in WIDE.items():
            codec.g_a[6].weight[channel] *= factor
            for weight in (codec.h_a[0].weight.transpose(0, 1), codec.g_s[0].weight):
                weight[channel] /= factor
    return with_tables(codec)


@pytest.fixture(scope="module")
def split(plain: Codec, pictures: list[Tensor]) -> Codec:
    return calibrate(plain, pictures, Quantization("all", hyper=True))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_splits_sum_to_the_finer_level(count: int) -> None:
    x, splits = torch.linspace(-20, 20, 100_003), torch.tensor(count)
    parts = torch.stack([(x + offset(place, splits)).round() for place in range(count)])
    assert torch.equal(parts.sum(0), (count * x).round())
    levels = torch.arange(LOWEST * count, HIGHEST * count + 1.0).view(1, 1, -1, 1)
    held = apart(levels, splits[None])
    assert held.shape[1] == count
    assert (held.min(), held.max()) == (LOWEST, HIGHEST)
    assert torch.equal(together(held, splits[None]), levels)
    assert torch.equal(apart(parts.sum(0).view(1, 1, -1, 1), splits[None])[0, :, :, 0], parts)  # in the same places


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_sum_of_weights_has_weights_of_8_bits(count: int) -> None:
    sums, splits = torch.arange(LOWEST * count, HIGHEST * count + 1.0), torch.tensor(count)
    shared, more = shared_and_more(sums, splits)
    assert torch.equal(count * shared + more, sums)
    for weights in (shared, shared + more):
        assert weights.min() >= LOWEST
        assert weights.max() <= HIGHEST


def test_only_wide_channels_are_split_and_y_is_finer_by_it(plain: Codec, split: Codec, pictures: list[Tensor]) -> None:
    found = {name: (levels.step, levels.splits) for name, levels in levels_of(split)}
    assert found.keys() == {"g_a", "h_a", "g_s"}
    for step, splits in found.values():
        assert [c for c in range(M) if splits[c] > 1] == list(WIDE)
        assert splits[8] == MOST_SPLITS
        assert (step[[2, 7]] <= COARSEST).all()
    coarse = copy.deepcopy(split)
    for _, levels in levels_of(coarse):
        levels.splits.fill_(1)  # the fine steps, in 8 bits
    x, most = pictures[0], HIGHEST * found["g_a"][0].view(-1, 1, 1)
    exact = plain.g_a(x)
    assert (exact.abs() > most)[:, list(WIDE)].any()
    assert (split.g_a(x) - exact).abs().max() < (coarse.g_a(x) - exact).abs().max() / 3
    assert (split.g_s(exact) - plain.g_s(exact).clamp(0, 1)).abs().mean() < 0.02
    far = torch.full((1, M, 2, 2), -1e6)
    least = LOWEST * (found["g_s"][0] * found["g_s"][1]).view(1, M, 1, 1).expand_as(far)
    assert torch.equal(split.g_s(far), split.g_s(least))


def test_it_is_the_same_codec_in_float(plain: Codec, split: Codec, pictures: list[Tensor]) -> None:
    again = in_float(split)
    exact = plain.g_a(pictures[0])
    assert (again.g_a(pictures[0]) - exact).abs().amax((0, 2, 3)).div(exact.abs().amax((0, 2, 3))).max() < 0.02


def test_the_weights_of_split_channels_have_a_finer_grid(split: Codec) -> None:
    splits = split.g_a.levels.splits
    for layer in (split.g_a.get_submodule("6"), split.g_s.get_submodule("0")):  # y's channels are axis 0 of both
        assert isinstance(layer, QuantizedLayer)
        quantizer, coarse = layer.weight_quantizer, layer.weight_quantizer.coarse_along(layer.float_weight)
        weight = coarse * torch.linspace(-127, 127, layer.float_weight.numel()).view_as(layer.float_weight)
        rounded = quantizer(weight)
        largest_error = ((rounded - weight).abs() / coarse).flatten(1).amax(1)
        torch.testing.assert_close(largest_error, 0.5 / splits, rtol=0.1, atol=1e-3)
        of_chip = quantizer.of_chip(rounded)
        assert len(of_chip) == splits.sum()
        assert of_chip.abs().max() <= HIGHEST
        sums = torch.stack([part.sum(0) for part in of_chip.split(splits.tolist())])
        assert torch.equal(sums, quantizer.integers(rounded))
    h_a = split.h_a.get_submodule("0")
    assert isinstance(h_a, QuantizedLayer)
    assert h_a.weight_quantizer.splits is None


@pytest.mark.parametrize(
    "quantization", [Quantization("all", hyper=True, w_per_channel=False), Quantization("all", hyper=True, a16="g_s.*")]
)
def test_one_scale_for_all_weights_or_16_bits_beside_y_leave_channels_whole(
    quantization: Quantization, plain: Codec, pictures: list[Tensor]
) -> None:
    codec = calibrate(plain, pictures[:1], quantization)
    assert all((levels.splits == 1).all() for _, levels in levels_of(codec))


def test_a_checkpoint_keeps_the_splits_and_an_earlier_one_has_none(
    split: Codec, pictures: list[Tensor], tmp_path: Path
) -> None:
    save_codec(tmp_path / "c.safetensors", split, Description())
    loaded, _ = load_codec(tmp_path / "c.safetensors")
    assert torch.equal(loaded(pictures[0])["x_hat"], split(pictures[0])["x_hat"])
    state = load_file(tmp_path / "c.safetensors")
    earlier = {name: tensor for name, tensor in split.state_dict().items() if not name.endswith(".splits")}
    assert state.keys() >= split.state_dict().keys() > earlier.keys()
    loaded.load_weights(earlier)
    assert all((levels.splits == 1).all() for _, levels in levels_of(loaded))
