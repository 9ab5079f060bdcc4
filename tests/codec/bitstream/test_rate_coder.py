"""Gains, densities and the coder of codecs with several rates, against Python's integers and against real numbers."""

import struct
import zlib

import numpy as np
import pytest
import torch
from integer_stack import IntegerStack
from rates import RATES, rated

from benchmarks.damage import damaged
from codec.bitstream.container import pack, unpack
from codec.bitstream.density import Density
from codec.bitstream.gains import MOST_EXPONENT, STEPS, Gains, Scaling
from codec.bitstream.hyper_coder import HyperCoder, z_size
from codec.bitstream.rate_coder import RateCoder, coder_of
from codec.bitstream.rate_tables import RateTables
from codec.bitstream.rows import Rows
from codec.bitstream.tables import from_bytes, to_bytes
from codec.description.architecture import ARCHITECTURES
from codec.errors import InputError
from codec.network import gains as network
from codec.network.tables import tables_of

MOST = STEPS * (RATES - 1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def coder(request: pytest.FixtureRequest) -> RateCoder:
    found = coder_of(tables_of(rated(request.param)))
    assert isinstance(found, RateCoder)
    return found


def drawn(coder: RateCoder, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Symbols of y, some of them far away, and of z."""
    random = np.random.default_rng(height * width)
    y = np.rint(random.laplace(0, 3, (coder.tables.channels, height, width))).astype(np.int32)
    y.flat[:2] = 3000, -2999
    z = random.integers(-3, 4, (coder.channels_of_z, *z_size(height, width)), dtype=np.int32)
    return y, z if coder.channels_of_z else None


def test_gains_are_powers_of_two_to_sixteen_bits() -> None:
    scaling = Scaling(np.arange(0, MOST_EXPONENT + 1, 7, dtype=np.int32))
    exact = 2.0 ** (scaling.exponents / 256)
    assert np.abs(scaling.inverse / 2**16 / exact - 1).max() < 1e-5
    assert np.abs(scaling.fixed / 2**16 - 1 / exact).max() <= 2.0**-16
    assert scaling.gain.ravel() == pytest.approx(1 / exact, rel=1e-6)
    assert scaling.fixed[0] == scaling.inverse[0] == 2**16


def test_between_trained_rates_the_gains_are_interpolated_geometrically() -> None:
    gains = Gains(np.array([[1000, 300], [500, 300], [0, 0]], np.int32))
    assert gains.most == 2 * STEPS
    assert [gains.at(rate).exponents.tolist() for rate in (0, STEPS, 2 * STEPS)] == gains.exponents.tolist()
    assert gains.at(STEPS // 2).exponents.tolist() == [750, 300]
    assert gains.at(STEPS + STEPS // 4).exponents.tolist() == [375, 225]


@pytest.mark.parametrize("rates", [2, 8, 12, 17])
def test_evaluation_has_the_gains_of_files_at_every_rate(rates: int) -> None:
    learned = network.Gains(rates, 3, 4.0)
    learned.exponents.copy_(torch.arange(rates - 1, -1, -1)[:, None] * torch.tensor([1, 5, 90], dtype=torch.int32))
    gains = Gains(learned.exponents.numpy())
    coded = learned.coded(torch.arange(gains.most + 1) / gains.most)
    for rate in range(gains.most + 1):
        scaling = gains.at(rate)
        assert coded.inverse[rate].flatten().tolist() == scaling.inverse.tolist()
        assert coded.fixed[rate].flatten().tolist() == scaling.fixed.tolist()


@pytest.mark.parametrize(
    "exponents", [[[5, 5]], [[0, 0], [1, 0], [0, 0]], [[9, 9], [1, 0]], [[MOST_EXPONENT + 1, 0], [0, 0]]]
)
def test_gains_that_are_none_are_refused(exponents: list[list[int]]) -> None:
    with pytest.raises(InputError, match="gains"):
        Gains(np.array(exponents, np.int32))


def test_the_rows_of_a_rate_are_the_density_between_the_ends_of_its_symbols() -> None:
    """Of logistic densities of several widths: to a thousandth of a bit."""
    widths, shift, points = np.array([0.05, 0.3, 2.0, 20.0]), np.array([9, 11, 14, 17], np.int32), 257
    first = np.full(4, -128, np.int32)
    places = (first[:, None] + np.arange(points)) * 2.0 ** (shift[:, None] - 16)
    values = np.rint(2**24 / (1 + np.exp(-places / widths[:, None]))).astype(np.int32)
    values[:, 0], values[:, -1] = 0, 2**24
    density = Density(first, shift, values)
    for exponent in (0, 100, 256, 700):
        scaling = Scaling(np.full(4, exponent, np.int32))
        rows = density.rows(scaling)
        step = 2 ** (exponent / 256)
        for channel, width in enumerate(widths):
            length, offset = rows.lengths[channel], rows.offsets[channel]
            coded = np.diff(rows.cdfs[channel, :length])[:-1] / 65536
            ends = (np.arange(offset, offset + length - 1) - 0.5) * step / width
            real = np.diff(1 / (1 + np.exp(-np.clip(ends, -40, 40))))
            excess = (real * np.log2(np.maximum(real, 1e-12) / coded)).sum()
            assert excess < 0.001 + length / 65536 * 1.5, (exponent, width, excess)


def by_integers(density: Density, scaling: Scaling) -> Rows:
    """The rows as docs/rd.md describes them."""
    found = []
    for first, shift, values, inverse in zip(
        density.first.tolist(), density.shift.tolist(), density.values.tolist(), scaling.inverse.tolist(), strict=True
    ):
        begin, end = first << shift + 1, first + len(values) - 1 << shift + 1

        def below(place: int, begin: int = begin, shift: int = shift, values: list[int] = values) -> int:
            inside = min(max(place - begin, 0), len(values) - 1 << shift + 1)
            j = min(inside >> shift + 1, len(values) - 2)
            return values[j] + ((values[j + 1] - values[j]) * (inside - (j << shift + 1)) >> shift + 1)

        lowest = next(k for k in range(-10_000, 10_000) if (2 * k + 1) * inverse >= begin)
        highest = next(k for k in range(10_000, -10_000, -1) if (2 * k - 1) * inverse <= end)
        count = highest - lowest + 1
        ends = [below((2 * (lowest + i) - 1) * inverse) for i in range(count + 1)]
        cdf = [i + ((each - ends[0]) * (65536 - count - 1) >> 24) for i, each in enumerate(ends)]
        found.append((lowest, [*cdf, 65536]))
    longest = max(len(cdf) for _, cdf in found)
    offsets, lengths = (np.array(each, np.int32) for each in zip(*((k, len(cdf)) for k, cdf in found), strict=True))
    return Rows(offsets, lengths, np.array([cdf + [0] * (longest - len(cdf)) for _, cdf in found], np.int32))


@pytest.mark.parametrize("rate", [0, 37, MOST])
def test_the_integers_of_the_tables_are_what_decodes_a_file(coder: RateCoder, rate: int) -> None:
    tables, (y, z), size = coder.tables, drawn(coder, 5, 6), (80, 96)
    data = pack(*size, y, coder, z, rate)
    height, width, values = unpack(data, coder)
    assert (height, width) == size
    assert data[3] == 3
    assert data[12] == tables.number
    assert data[13 : 13 + 1 + (rate > 127)] == bytes([rate & 127 | 128, rate >> 7] if rate > 127 else [rate])
    stack = IntegerStack(data[13 + 1 + (rate > 127) + 2 :])
    gains = tables.gains.at(rate)
    scaled = gains.inverse[:, None, None]
    if tables.hyper is None:
        rows = by_integers(tables.density, gains)
        symbols = stack.group(rows, [c for c in range(len(y)) for _ in range(y[0].size)])
        assert symbols == y.ravel().tolist()
        assert np.array_equal(values, (y * scaled + 512) >> 10)
    else:
        assert z is not None
        rows = by_integers(tables.density, tables.scaling_of_z(rate))
        found = stack.group(rows, [c for c in range(len(z)) for _ in range(z[0].size)])
        assert found == z.ravel().tolist()
        at = coder.at(rate)
        assert isinstance(at, HyperCoder)
        picked, means = at.context(z, *y.shape[1:])
        order = np.argsort(picked.ravel(), kind="stable")
        assert stack.group(tables.hyper.y, picked.ravel()[order].tolist()) == y.ravel()[order].tolist()
        assert np.array_equal(values, ((y * scaled + 512) >> 10) + (0 if means is None else means))
    assert stack.is_empty


def test_the_estimate_is_the_payload_and_lower_rates_round_to_smaller_files(coder: RateCoder) -> None:
    random = np.random.default_rng(1)
    y = random.normal(0, 6, (coder.tables.channels, 12, 16)).astype(np.float32)
    z = random.normal(0, 3, (coder.channels_of_z, 3, 4)).astype(np.float32)
    sizes = []
    for rate in range(0, MOST + 1, 16):
        at = coder.at(rate)
        of_z = at.round_z(z) if isinstance(at, HyperCoder) else None
        symbols = at.round(y, of_z)
        payload = at.encode(symbols, of_z)
        sizes.append(8 * len(payload))
        assert sizes[-1] == pytest.approx(at.bits(symbols, of_z), rel=0.003, abs=64)
        values = at.decode(payload, 12, 16)
        if not (isinstance(at, HyperCoder) and at.tables.network.has_means):
            error = np.abs(values / 64 - (y - coder.medians)) * coder.tables.gains.at(rate).gain
            assert error.max() < 0.51
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.9 * sizes[-1]


def test_densities_whose_rows_would_take_gigabytes_are_refused() -> None:
    """The longest row decides the memory of all: one of 8000 symbols in 60,000 channels asked for 8 GB, six times."""
    channels = 60_000
    values = np.tile(np.array([0, 1 << 24], np.int32), (channels, 1))
    shift = np.zeros(channels, np.int32)
    shift[7] = 28
    density = Density(np.zeros(channels, np.int32), shift, values)
    with pytest.raises(InputError, match="too many symbols"):
        density.rows(Scaling(np.zeros(channels, np.int32)))
    few = Density(density.first[:8], shift[:8], values[:8])
    assert few.rows(Scaling(np.zeros(8, np.int32))).lengths.max() > 4000


def test_tables_survive_their_file_and_damage_is_noticed(coder: RateCoder) -> None:
    tables = coder.tables
    data = to_bytes(tables)
    assert struct.unpack_from("<4s4I", data) == (b"NICT", 3, zlib.crc32(data[12:]), tables.fingerprint, 16)
    read = from_bytes(data)
    assert isinstance(read, RateTables)
    assert to_bytes(read) == data
    y, z = drawn(coder, 4, 4)
    assert np.array_equal(unpack(pack(64, 64, y, coder, z, 3), coder_of(read))[2], coder.at(3).decode(
        coder.at(3).encode(y, z), 4, 4))  # fmt: skip
    chance = np.random.default_rng(0)
    for _ in range(200):
        wrong = bytearray(data)
        place = int(chance.integers(12, min(len(data), 3000)))
        wrong[place] ^= 1 << int(chance.integers(8))
        with pytest.raises(InputError, match="damaged"):
            from_bytes(bytes(wrong))
        wrong[8:12] = struct.pack("<I", zlib.crc32(wrong[12:]))
        try:
            from_bytes(bytes(wrong))
        except InputError:
            continue


def test_damaged_files_never_give_a_picture(coder: RateCoder) -> None:
    files = [pack(70, 50, *_of(drawn(coder, 5, 4), coder), rate) for rate in (0, 100, MOST)]
    for data in damaged(files, 300, seed=1):
        with pytest.raises(InputError):
            unpack(data, coder)


def _of(symbols: tuple[np.ndarray, np.ndarray | None], coder: RateCoder) -> tuple[np.ndarray, RateCoder, object]:
    return symbols[0], coder, symbols[1]


def test_a_rate_that_the_codec_lacks_is_refused(coder: RateCoder) -> None:
    y, z = drawn(coder, 4, 4)
    with pytest.raises(InputError, match=f"rate {MOST + 1}, and this codec has rates 0 to {MOST}"):
        pack(64, 64, y, coder, z, MOST + 1)
    data = bytearray(pack(64, 64, y, coder, z, 5))
    data[13:14] = bytes([255, 7])
    with pytest.raises(InputError, match="it has rate 1023"):
        unpack(bytes(data[:8] + _sum(data) + data[12:]), coder)


def _sum(data: bytearray) -> bytes:
    return struct.pack("<I", zlib.crc32(data[12:], zlib.crc32(data[:8])))


def test_a_symbol_whose_value_would_not_fit_is_refused(coder: RateCoder) -> None:
    y, z = drawn(coder, 4, 4)
    y.flat[0] = 2**24
    with pytest.raises(InputError, match="too large"):
        pack(64, 64, y, coder, z, 0)
