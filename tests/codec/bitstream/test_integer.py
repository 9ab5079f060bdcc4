"""The integer h_s: the integers are the contract, whatever computes them."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hyper import HYPER, hyper_tables
from numpy.typing import NDArray
from programs import ROOT

from codec.bitstream import winograd
from codec.bitstream.integer import IntegerNetwork
from codec.bitstream.tables import to_bytes
from codec.bitstream.winograd import Winograd
from codec.errors import InputError

Integers = NDArray[np.int64]


@pytest.fixture(scope="module", params=HYPER)
def network(request: pytest.FixtureRequest) -> IntegerNetwork:
    return hyper_tables(request.param).network


def drawn(network: IntegerNetwork, height: int, width: int, reach: int = 9) -> NDArray[np.int32]:
    """Symbols of z, [N, height, width]."""
    random = np.random.default_rng(height * width)
    return random.integers(-reach, reach + 1, (len(network.medians), height, width)).astype(np.int32)


def by_integers(network: IntegerNetwork, z: NDArray[np.int32]) -> tuple[Integers, Integers]:
    """Indexes and means with int64 alone, each output from its definition, as docs/rd.md describes it."""
    x = np.clip(z.astype(np.int64), -(2**20), 2**20) * 2**network.fraction + network.medians[:, None, None]
    x = np.clip(x, -network.most, network.most)
    for layer in network.layers:
        step, size = (2, 5) if layer.transposed else (1, 3)
        height, width = x.shape[1:]
        sums = np.zeros((len(layer.weight), step * height + 4, step * width + 4), np.int64)
        for i, j, (ky, kx) in product(range(height), range(width), product(range(size), repeat=2)):
            # Output row step * i + ky - 2 of a transposed layer; row i - (ky - 1) of the other, whose kernel is turned.
            row, column = (2 * i + ky, 2 * j + kx) if layer.transposed else (i - ky + 3, j - kx + 3)
            sums[:, row, column] += layer.weight[:, :, ky, kx].astype(np.int64) @ x[:, i, j]
        sums = sums[:, 2:-2, 2:-2] + layer.bias[:, None, None]
        assert np.abs(sums).max() < 2**31
        multiplier = layer.multiplier.astype(np.int64)
        negative = (multiplier * layer.slope + 2**15) >> 16
        factor = np.where(sums < 0, negative[:, None, None], multiplier[:, None, None])
        shift = layer.shift.astype(np.int64)[:, None, None]
        x = np.clip((sums * factor + (1 << shift - 1)) >> shift, -layer.most, layer.most)
    scales, means = x[: network.channels], x[network.channels :]
    return (np.clip(scales, 0, 65535)[..., None] >= network.thresholds).sum(-1), means


def whole(network: IntegerNetwork, z: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
    return network.context(z, (0, z.shape[1]), (0, z.shape[2]))


def test_the_definition_gives_the_same_integers(network: IntegerNetwork) -> None:
    for height, width in ((1, 1), (1, 7), (5, 1), (4, 6)):
        z = drawn(network, height, width)
        indexes, means = whole(network, z)
        expected, expected_means = by_integers(network, z)
        assert np.array_equal(indexes, expected)
        assert indexes.dtype == np.uint8
        assert (means is None) == (expected_means.size == 0)
        if means is not None:
            assert means.dtype == np.int32
            assert np.array_equal(means, expected_means)
    assert len(np.unique(indexes)) > 15


def test_symbols_of_32_bits_saturate(network: IntegerNetwork) -> None:
    z = drawn(network, 3, 4, 2**31 - 1)
    z[0], z[1], z[2, 0] = 2**31 - 1, -(2**31), 2**20
    indexes, means = whole(network, z)
    expected, expected_means = by_integers(network, z)
    assert np.array_equal(indexes, expected)
    assert means is None or np.array_equal(means, expected_means)


@pytest.mark.parametrize(("name", "limit"), [("_EXACT", 0), ("_MOST_PRODUCT", 0), ("_AT_ONCE", 1), ("_AT_ONCE", 3000)])
def test_the_types_and_the_bands_of_the_products_change_nothing(
    network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    z = drawn(network, 5, 4)
    indexes, means = whole(network, z)
    monkeypatch.setattr(winograd, name, limit)
    found, found_means = whole(network, z)
    assert np.array_equal(found, indexes)
    assert means is None or np.array_equal(found_means, means)


def test_the_largest_numbers_of_a_network_are_exact() -> None:
    """Inputs and weights at their limits, with the signs of the largest sums, where float32 is not exact."""
    signs = np.random.default_rng(0).choice([-1, 1], (2, 12)).astype(np.int8)
    kernels = np.broadcast_to(np.int8(127) * signs[:, :, None, None], (1, 1, 2, 12, 3, 3))
    x = np.broadcast_to(np.float32(65535) * signs[0][:, None, None], (12, 5, 7)).astype(np.float32)
    x[3, 2, 2] -= 1
    integers = kernels[0, 0].astype(np.int64)
    ((_, sums),) = Winograd(kernels).sums(x, 0, 5)
    inner = sums[:, :, 0, 0, :, :2, :-1].transpose(2, 3, 0, 4, 1).reshape(2, 4, 8)[:, 1:4, 1:6]
    expected = [
        [np.einsum("ocab,cab->o", integers, x[:, i : i + 3, j : j + 3].astype(np.int64)) for j in range(5)]
        for i in range(3)
    ]
    assert np.array_equal(inner, 4 * np.moveaxis(expected, 2, 0))


def test_products_in_float32_cannot_leave_its_exact_range(
    network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that the network chose: the terms of one sign of each sum, the largest partial sum there is."""
    largest: list[float] = []

    def matmul(weight: NDArray[np.float32], value: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        positive = np.maximum(weight, 0).astype(np.float64) @ np.maximum(value, 0)
        largest.append((positive + np.minimum(weight, 0).astype(np.float64) @ np.minimum(value, 0)).max())
        out[:] = weight @ value

    monkeypatch.setattr(np, "matmul", matmul)
    whole(network, drawn(network, 5, 4))
    assert len(largest) > 24
    assert 2**16 < max(largest) <= 2**24


def test_a_window_is_what_it_is_in_the_whole_picture(network: IntegerNetwork) -> None:
    z = drawn(network, 9, 8)
    indexes, means = whole(network, z)
    for rows, columns in (((0, 1), (0, 8)), ((1, 4), (0, 8)), ((8, 9), (0, 8)), ((2, 7), (3, 4)), ((4, 5), (6, 8))):
        found, found_means = network.context(z, rows, columns)
        place = slice(4 * rows[0], 4 * rows[1]), slice(4 * columns[0], 4 * columns[1])
        assert np.array_equal(found, indexes[:, *place])
        assert means is None or np.array_equal(found_means, means[:, *place])


PROGRAM = """
import hashlib, sys
import numpy as np
from codec.bitstream.tables import from_bytes
network = from_bytes(sys.stdin.buffer.read()).network
z = np.random.default_rng(0).integers(-9, 10, (len(network.medians), 24, 32)).astype(np.int32)
results = network.context(z, (0, 24), (0, 32))
print(*(hashlib.sha256(each.tobytes()).hexdigest() for each in results if each is not None))
"""
"""Its picture is so large that a BLAS uses its threads."""


@pytest.mark.slow
@pytest.mark.parametrize("arch", HYPER)
def test_threads_and_kernels_of_the_blas_change_nothing(arch: str) -> None:
    tables = to_bytes(hyper_tables(arch))
    settings: list[dict[str, str]] = [{}, {"OPENBLAS_NUM_THREADS": "2"}]
    settings.append({"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Sandybridge"})
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            input=tables,
            env=os.environ | each,
            capture_output=True,
            check=True,
        ).stdout
        for each in settings
    }
    assert len(printed) == 1


def test_what_is_no_network_is_refused(network: IntegerNetwork) -> None:
    first, second, last = network.layers
    wrong_layers = (
        {"weight": first.weight.astype(np.int32)},
        {"weight": first.weight[:, :, :4]},
        {"weight": first.weight[..., 0]},
        {"bias": first.bias[1:]},
        {"bias": first.bias.astype(np.int64)},
        {"multiplier": first.multiplier - 70_000},
        {"multiplier": first.multiplier + 70_000},
        {"shift": first.shift * 0},
        {"shift": first.shift + 46},
        {"slope": 65_537},
        {"slope": -1},
        {"most": 0},
        {"most": 2**20},
    )
    for change in wrong_layers:
        with pytest.raises(InputError, match="integer network"):
            replace(first, **change)
    wrong = (
        {"layers": (first, last)},
        {"layers": (second, first, last)[:2]},
        {"layers": (last, second, first)},
        {"layers": (replace(first, weight=first.weight[:, 1:]), second, last)},
        {"layers": (replace(first, bias=np.full_like(first.bias, 2**31 - 1)), second, last)},
        {"layers": (replace(first, most=2**19), second, last)},
        {"medians": network.medians[1:]},
        {"medians": network.medians.astype(np.int64)},
        {"medians": np.full_like(network.medians, -(2**31))},
        {"thresholds": network.thresholds[::-1]},
        {"thresholds": -network.thresholds},
        {"thresholds": np.array([2**31 - 1, -5], np.int32)},
        {"thresholds": np.arange(256, dtype=np.int32)},
        {"thresholds": network.thresholds[None]},
        {"fraction": 11},
        {"fraction": -1},
        {"most": 2**16},
        {"most": 0},
    )
    for change in wrong:
        with pytest.raises(InputError, match="integer network"):
            replace(network, **change)
