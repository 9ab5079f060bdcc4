"""The integer h_s: near to the float h_s, and the same integers by torch and by numpy."""

import numpy as np
import pytest
import torch
from hyper import HYPER, arrays_of, hyper_codec, hyper_tables
from rates import rated

from benchmarks.coding import drawn_z
from codec.bitstream.hyper_coder import HyperCoder, z_size
from codec.bitstream.rows import bits
from codec.bitstream.tables import tables_of_state
from codec.errors import InputError
from codec.network.integer import TorchIntegerNetwork, integer_h_s
from codec.network.tables import with_tables

SIZES = ((1, 1), (7, 13), (16, 24))


@pytest.mark.parametrize("arch", HYPER)
def test_torch_and_numpy_give_the_same_integers(arch: str) -> None:
    tables = hyper_tables(arch)
    coder, module = HyperCoder(tables), TorchIntegerNetwork(tables.network)
    for height, width in SIZES:
        z = np.stack([drawn_z(tables, height, width), drawn_z(tables, height, width)[:, ::-1, ::-1]])
        z[0, :, 0, 0] = np.resize([2**31 - 1, -(2**31)], z.shape[1])
        indexes, means = module(torch.from_numpy(z.copy()), height, width)
        assert indexes.dtype == torch.int64
        for number, each in enumerate(z):
            expected, expected_means = coder.context(np.ascontiguousarray(each), height, width)
            assert np.array_equal(indexes[number], expected)
            assert (means is None) == (expected_means is None)
            if means is not None:
                assert np.array_equal(means[number], expected_means)


@pytest.mark.parametrize("arch", HYPER)
def test_it_compiles_to_one_graph_with_the_same_integers(arch: str) -> None:
    tables = hyper_tables(arch)
    module = TorchIntegerNetwork(tables.network)
    z = torch.from_numpy(drawn_z(tables, 14, 14))[None].float()
    expected = module(z, 14, 14)
    found = torch.compile(module, fullgraph=True, backend="aot_eager")(z, 14, 14)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("arch", HYPER)
def test_it_costs_next_to_no_bits(arch: str) -> None:
    """y is drawn from the float h_s's own Gaussians, and coded with its indexes and with the integer ones."""
    codec = hyper_codec(arch, 24, 32)
    tables = tables_of_state(arrays_of(codec), {})
    coder, gaussian = HyperCoder(tables), codec.gaussian_conditional
    y_size = (64, 64)
    z = drawn_z(tables, *y_size)
    with torch.no_grad():
        y = torch.empty(1, codec.M, *y_size)
        scales, means = codec.predict(torch.from_numpy(z)[None] + codec.entropy_bottleneck.medians(), y)
        torch.manual_seed(0)
        y = torch.randn(y.shape) * scales.clamp_min(0.11) + (0 if means is None else means)
        indexes = gaussian.build_indexes(scales)[0].numpy()
        symbols = torch.round(y - (0 if means is None else means))[0].int().numpy()
    own, integer_means = coder.context(z, *y_size)
    float_bits = bits(tables.y, symbols.ravel(), indexes.ravel())
    integer_bits = bits(tables.y, coder.round(y[0].numpy(), z).ravel(), own.ravel())
    assert abs(integer_bits / float_bits - 1) < 0.003
    assert np.abs(own.astype(int) - indexes).max() <= 6
    assert (own == indexes).mean() > 0.8
    if means is not None:
        assert integer_means is not None
        assert np.abs(integer_means * coder.unit - means[0].numpy()).mean() < 0.1


@pytest.mark.parametrize("arch", HYPER)
def test_a_threshold_separates_scales_as_compressai_s_indexes_do(arch: str) -> None:
    codec = hyper_codec(arch)
    network = hyper_tables(arch).network
    scales = torch.arange(1 << 16) / 256
    expected = codec.gaussian_conditional.build_indexes(scales)
    assert np.array_equal(expected, (np.arange(1 << 16)[:, None] >= network.thresholds).sum(1))


@pytest.mark.parametrize("arch", HYPER)
def test_widths_of_no_use_give_a_network_too(arch: str) -> None:
    """Dead and enormous weights, and densities of z so wide that its symbols have no room for fractional bits."""
    codec = hyper_codec(arch)
    with torch.no_grad():
        codec.h_s[0].weight[:, 0] = 0
        codec.h_s[0].bias[0] = 0
        codec.h_s[2].weight *= 1e12
        codec.h_s[4].bias[1] = -1e9
        codec.entropy_bottleneck.matrices[0][:1] -= 2
    codec = with_tables(codec)
    scales = codec.gaussian_conditional.scale_table
    network = integer_h_s(codec.h_s, codec.entropy_bottleneck, scales, codec.has_means)
    z = np.zeros((8, *z_size(8, 8)), np.int32)
    assert network.context(z, (0, 2), (0, 2))[0].shape == (12, 8, 8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("arch", HYPER)
@pytest.mark.parametrize("factor", [1e20, 3e37])
def test_weights_that_overflow_are_refused_without_warnings(arch: str, factor: float) -> None:
    codec = hyper_codec(arch)
    with torch.no_grad():
        for layer in (codec.h_s[0], codec.h_s[2], codec.h_s[4]):
            layer.weight *= factor
    with pytest.raises(InputError, match="h_s gives NaN or Inf for symbols of z; its training has diverged"):
        with_tables(codec)


@pytest.mark.parametrize("arch", HYPER)
def test_a_codec_of_several_rates_that_diverged_has_no_likelihoods(arch: str) -> None:
    codec = rated(arch)
    with torch.no_grad():
        codec.g_a[0].bias.fill_(torch.nan)
        found = codec(torch.rand(1, 3, 64, 64), rates=torch.tensor([0.5]))["likelihoods"]
    assert all(each.isnan().all() for each in found.values())
