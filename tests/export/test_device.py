"""The coder in C: files, symbols and refusals are the Python coder's."""

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hyper import HYPER, hyper_tables
from rates import rated

from benchmarks.damage import damaged, forged
from benchmarks.device import compile_driver, fuzz, symbols_for
from coco224.errors import DataError
from codec.bitstream import hyper_coder
from codec.bitstream.container import pack, unpack
from codec.bitstream.density import Density
from codec.bitstream.gains import Gains
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.integer import IntegerNetwork, Layer
from codec.bitstream.rate_coder import AnyCoder, RateCoder, at_rate, coder_of
from codec.bitstream.rate_tables import RateTables
from codec.bitstream.tables import Tables, from_bytes, to_bytes
from codec.description.architecture import Architecture
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.tables import tables_of, with_tables
from export.device import DeviceCoder, compile_command, compile_library, main
from export.device.compiling import SOURCES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler cc"),
]

Symbols = np.ndarray
SIZES = ((1, 1), (16, 16), (17, 33), (65, 130), (300, 200), (20, 1000))
NAMES = ("bmshj2018_factorized", *HYPER)
RATED = tuple(f"{name}, all rates" for name in NAMES)


def factorized() -> Tables:
    """Rows of a few to some hundred intervals."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 12))
    with torch.no_grad():
        codec.entropy_bottleneck.matrices[0].add_(torch.linspace(-3, 25, 12)[:, None, None])
    tables = tables_of(with_tables(codec))
    assert isinstance(tables, Tables)
    return tables


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, which ends the process where C leaves a result undefined."""
    path = tmp_path_factory.mktemp("device") / "libnic.so"
    compile_library(path, ["-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"])
    return path


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "nic"
    compile_command(path, ["-O1"])
    return path


@pytest.fixture(scope="module")
def coders() -> dict[str, AnyCoder]:
    coders = {"bmshj2018_factorized": coder_of(factorized())} | {arch: coder_of(hyper_tables(arch)) for arch in HYPER}
    return coders | {name: coder_of(tables_of(rated(arch))) for name, arch in zip(RATED, NAMES, strict=True)}


@pytest.fixture(scope="module")
def devices(coders: dict[str, AnyCoder], library: Path) -> dict[str, DeviceCoder]:
    return {name: DeviceCoder(to_bytes(coder.tables), library) for name, coder in coders.items()}


def check_file(
    coder: AnyCoder, device: DeviceCoder, height: int, width: int, symbols: Symbols, z: Symbols | None
) -> None:
    """Both write the same file, and both read the same from it."""
    data = pack(height, width, symbols, coder, z)
    assert device.pack(height, width, symbols, z) == data
    read, expected = device.unpack(data), unpack(data, coder)
    assert read[:2] == expected[:2] == (height, width)
    assert np.array_equal(read[2], expected[2])


@pytest.mark.parametrize("name", NAMES)
def test_files_are_byte_for_byte_those_of_the_python_coder(
    name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    coder, device = coders[name], devices[name]
    assert (device.fingerprint, device.channels) == (coder.tables.fingerprint, coder.tables.channels)
    assert device.unit == coder.unit
    assert np.array_equal(device.medians, coder.medians)
    for size in SIZES:
        for spread in (1, 7, 3000):
            check_file(coder, device, *size, *symbols_for(coder, *size, spread))


@pytest.mark.parametrize("name", RATED)
def test_files_and_symbols_of_every_rate_are_those_of_the_python_coder(
    name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    coder, device = coders[name], devices[name]
    assert isinstance(coder, RateCoder)
    assert (device.most, device.unit) == (coder.most, coder.unit)
    random = np.random.default_rng(0)
    for rate in (0, 1, 31, 64, 127, 128, 150, coder.most):
        of_rate = at_rate(coder, rate)
        z = None
        if isinstance(of_rate, HyperCoder):
            floats = random.normal(0, 9, (coder.channels_of_z, 3, 4)).astype(np.float32)
            z = of_rate.round_z(floats)
            assert np.array_equal(device.round_z(130, 200, floats, rate), z)
        y = random.normal(0, 20, (12, 9, 13)).astype(np.float32)
        symbols = of_rate.round(y, z)
        assert np.array_equal(device.round(130, 200, y, z, rate), symbols)
        symbols[1, 2, 3] = 300_000  # times an inverse gain it has more than 32 bits
        data = pack(130, 200, symbols, coder, z, rate)
        assert device.pack(130, 200, symbols, z, rate) == data
        assert np.array_equal(device.unpack(data)[2], unpack(data, coder)[2])
        symbols[3, 4, 5] = -(2**26)
        with pytest.raises(InputError, match="too large"):
            of_rate.encode(symbols, z)
        with pytest.raises(InputError, match="too large"):
            device.pack(130, 200, symbols, z, rate)
    with pytest.raises(InputError, match="does not have this rate"):
        device.round(130, 200, y, z, coder.most + 1)


def test_gains_are_the_same_floats(library: Path) -> None:
    """Every exponent that a file can hold, over three sets of tables of two rates."""
    for lowest in (0, 1_024, 2_048):
        exponents = np.stack([np.arange(lowest, lowest + 1_025), np.zeros(1_025)]).astype(np.int32)
        flat = Density(
            np.full(1_025, -1, np.int32),
            np.full(1_025, 16, np.int32),
            np.tile([0, 1 << 23, 1 << 24], (1_025, 1)).astype(np.int32),
        )
        tables = RateTables(Gains(exponents), flat, np.zeros(1_025, np.float32), 7)
        y = np.random.default_rng(lowest).normal(0, 3e6, (1_025, 8, 8)).astype(np.float32)
        found = DeviceCoder(to_bytes(tables), library).round(128, 128, y, None, 0)
        assert np.array_equal(found, at_rate(RateCoder(tables), 0).round(y))


@pytest.mark.parametrize("name", NAMES)
def test_symbols_that_no_table_holds(name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]) -> None:
    coder, device = coders[name], devices[name]
    symbols, z = symbols_for(coder, 70, 90)
    most = 2**24 - 1 if name == "mbt2018_mean" else 2**31 - 1
    for i, value in enumerate((most, -most, 400_000, -16, 15, -most // 3)):
        symbols[i, 0, 1] = value
    if z is not None:
        z[:, 0, 0], z[:, 0, 1] = 2**31 - 1, -(2**31)
    check_file(coder, device, 70, 90, symbols, z)
    if name == "mbt2018_mean":
        symbols[0, 0, 0] = most + 1
        with pytest.raises(InputError, match="too large"):
            device.pack(70, 90, symbols, z)


@pytest.mark.parametrize(
    ("name", "size"), [(HYPER[0], (16, 64 * 10_922 + 99)), (HYPER[1], (64 * 10_922 + 99, 16))], ids=["columns", "rows"]
)
def test_a_file_of_several_pieces(
    name: str, size: tuple[int, int], coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    """With 12 channels a piece is 10,922 positions of z."""
    symbols, z = symbols_for(coders[name], *size)
    assert len(list(hyper_coder.pieces(*symbols.shape))) == 2
    check_file(coders[name], devices[name], *size, symbols, z)


def wide_tables(arch: str, most: int) -> HyperTables:
    """Tables whose integer h_s has activations of up to 17 bits, signs in every layer, and all rounding."""
    random = np.random.default_rng(most)
    own = hyper_tables(arch)
    layers = []
    for layer in own.network.layers:
        last = layer is own.network.layers[-1]
        layers.append(
            Layer(
                weight=random.integers(-9, 10, layer.weight.shape).astype(np.int8),
                bias=random.integers(-(2**20), 2**20, layer.bias.shape).astype(np.int32),
                multiplier=random.integers(0, 2**16 + 1, layer.bias.shape).astype(np.int32),
                shift=random.integers(14, 20, layer.bias.shape).astype(np.int32),
                slope=int(random.integers(1, 65537)),
                most=2**20 - 1 if last else most,
            )
        )
    network = own.network
    medians = random.integers(-(2**12), 2**12, network.medians.shape).astype(np.int32)
    wide = IntegerNetwork(tuple(layers), medians, 10, most, network.thresholds, network.has_means)
    return HyperTables(own.z, own.y, wide, own.fingerprint)


@pytest.mark.parametrize("arch", HYPER)
@pytest.mark.parametrize("most", [2**15 - 1, 2**15, 2**16 - 1])
def test_the_integer_h_s_with_the_widest_activations(arch: str, most: int, library: Path) -> None:
    tables = wide_tables(arch, most)
    coder, device = HyperCoder(tables), DeviceCoder(to_bytes(tables), library)
    symbols, z = symbols_for(coder, 300, 200, 2)
    z[::2] *= 1000
    indexes, means = coder.context(z, *symbols.shape[1:])
    assert len(np.unique(indexes)) > 20
    assert means is None or len(np.unique(means)) > 100
    check_file(coder, device, 300, 200, symbols, z)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_rounded_as_the_python_coder_rounds_them(
    name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    coder, device = coders[name], devices[name]
    symbols, z = symbols_for(coder, 130, 90, 40)
    y = (symbols + np.random.default_rng(0).uniform(-1, 1, symbols.shape)).astype(np.float32)
    y.ravel()[::3] = np.rint(2 * y.ravel()[::3]) / 2
    y[0, 0, :3] = 2.0**31 - 256, -(2.0**31) + 256, 2.0**23 + 1
    assert np.array_equal(device.round(130, 90, y, z), coder.round(y, z))
    if isinstance(coder, HyperCoder):
        of_z = np.arange(coder.channels_of_z * 6, dtype=np.float32).reshape(-1, 3, 2) / 4 - 3
        assert np.array_equal(device.round_z(130, 90, of_z), coder.round_z(of_z))
    for wrong in (np.nan, np.inf, -np.inf, 2.0**31):
        y[1, 1, 1] = wrong
        with pytest.raises(InputError, match="not finite"):
            device.round(130, 90, y, z)


@pytest.mark.parametrize("name", [*NAMES, RATED[0], RATED[2]])
def test_of_damaged_files_it_reads_what_the_python_coder_reads_and_refuses_what_it_refuses(
    name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    coder, device = coders[name], devices[name]
    files = []
    for size, spread in (((40, 30), 1), ((144, 224), 9), ((1, 1), 1)):
        symbols, z = symbols_for(coder, *size, spread)
        files.append(pack(*size, symbols, coder, z))
    start = 12 + (name != "bmshj2018_factorized") + (name in RATED) * 2
    wrong = [*damaged(files, 30, seed=0), *map(forged, damaged(files, 100, seed=1))]
    wrong += [
        forged(files[0][:start] + bytes(each)) for each in ([255] * 9, [0, 5], [5, 0], [208, 165, 1] * 2 + [1] * 9)
    ]
    read = 0
    for data in wrong:
        try:
            expected = unpack(data, coder)
        except InputError:
            with pytest.raises(InputError):
                device.unpack(data)
            continue
        found = device.unpack(data)
        assert found[:2] == expected[:2]
        assert np.array_equal(found[2], expected[2])
        read += 1
    assert 0 < read < 70


@pytest.mark.parametrize("name", [*NAMES, RATED[0], RATED[2]])
def test_of_damaged_tables_it_opens_what_the_python_coder_opens(
    name: str, coders: dict[str, AnyCoder], library: Path
) -> None:
    whole = to_bytes(coders[name].tables)

    def sealed(data: bytes) -> bytes:
        return data[:8] + struct.pack("<I", zlib.crc32(data[12:])) + data[12:]

    head = range(12, 12 + {1: 16, 2: 40, 3: 56}[whole[4]], 4)
    wrong = [sealed(whole[:i] + struct.pack("<I", n) + whole[i + 4 :]) for i in head for n in (0, 1, 2**31, 2**32 - 1)]
    wrong += [
        *damaged([whole], 20, seed=0),
        *(sealed(each) for each in damaged([whole], 60, seed=1) if len(each) > 12),
    ]
    opened = 0
    for data in wrong:
        try:
            from_bytes(data)
        except InputError:
            with pytest.raises(InputError):
                DeviceCoder(data, library)
        else:
            DeviceCoder(data, library)
            opened += 1
    assert 0 < opened < 70


def test_damaged_files_and_tables_make_no_sanitizer_speak(coders: dict[str, AnyCoder], tmp_path: Path) -> None:
    """The driver also gives too little memory. `python -m benchmarks.device` does the same with 100,000 files."""
    compile_driver(tmp_path / "driver")
    for name in ("mbt2018_mean", RATED[0], RATED[2]):
        found = fuzz(tmp_path / "driver", coders[name], 300, tmp_path)
        assert found["refused"] > 150
        assert found["accepted"] > 15


@pytest.mark.parametrize("name", NAMES)
def test_the_command_reads_and_writes_files(
    name: str, coders: dict[str, AnyCoder], command: Path, tmp_path: Path
) -> None:
    coder = coders[name]
    symbols, z = symbols_for(coder, 40, 30)
    data = pack(40, 30, symbols, coder, z)
    (tmp_path / "t.tables").write_bytes(to_bytes(coder.tables))
    (tmp_path / "y").write_bytes(symbols.tobytes())
    latents = ["y"]
    if z is not None:
        (tmp_path / "z").write_bytes(z.tobytes())
        latents = ["y", "z"]

    def nic(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert nic("encode", "t.tables", "0", "30", "40", *latents, "file").returncode == 0
    assert (tmp_path / "file").read_bytes() == data
    done = nic("decode", "t.tables", "file", "values")
    assert done.stdout == f"picture 30x40, y {'x'.join(map(str, symbols.shape))}\n"
    assert (tmp_path / "values").read_bytes() == unpack(data, coder)[2].tobytes()
    assert nic("about", "t.tables").stdout.startswith(f"codec {coder.tables.fingerprint:08x}, {name}, M=12")
    for words in (("decode", "y", "file", "v"), ("decode", "t.tables", "y", "v"), ("about", "none"), ("decode",)):
        refused = nic(*words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "v").exists()


def test_the_python_command_compiles_both_and_says_so_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out"), "--flags=-O0"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"nic", "libnic.so", "nic.h"}
    assert "libnic.so" in capsys.readouterr().out
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match="no C compiler no-such-compiler"):
        main([str(tmp_path / "out")])
    monkeypatch.setenv("CC", "false")
    with pytest.raises(InputError, match="does not compile"):
        main([str(tmp_path / "out")])


def test_files_of_the_user_s_are_not_replaced(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(InputError, match=said):
            main([str(tmp_path)])
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    (tmp_path / "notes").write_text("mine")
    for name in ("nic", "libnic.so", "nic.h"):
        (tmp_path / name).write_text("/* mine */")
        refused(f"{name} is not of this command")
        (tmp_path / name).unlink()
    header = (SOURCES / "nic.h").read_bytes()
    (tmp_path / "nic.h").write_bytes(header + b"/* of an earlier version */")
    (tmp_path / "nic").write_bytes(b"which a kill left")
    assert main([str(tmp_path), "--flags=-O0"]) == 0
    assert (tmp_path / "nic.h").read_bytes() == header
    assert os.access(tmp_path / "nic", os.X_OK)
    with pytest.raises(DataError, match=r"DIR .*nic cannot be written .it is a file.: name another folder"):
        main([str(tmp_path / "nic")])
