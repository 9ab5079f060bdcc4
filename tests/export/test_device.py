"""The coder in C: files, symbols and refusals are the Python coder's."""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hyper import HYPER, hyper_tables

from benchmarks.damage import damaged, forged
from benchmarks.device import compile_driver, fuzz, symbols_for
from codec.bitstream import hyper_coder
from codec.bitstream.container import pack, unpack
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.hyper_tables import HyperTables
from codec.bitstream.integer import IntegerNetwork, Layer
from codec.bitstream.rate_coder import AnyCoder, coder_of
from codec.bitstream.tables import Tables, from_bytes, to_bytes
from codec.description.architecture import Architecture
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.tables import tables_of, with_tables
from export.device import DeviceCoder, compile_command, compile_library, main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler cc"),
]

Symbols = np.ndarray
SIZES = ((1, 1), (16, 16), (17, 33), (65, 130), (300, 200), (20, 1000))
NAMES = ("bmshj2018_factorized", *HYPER)


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
    return {"bmshj2018_factorized": coder_of(factorized())} | {arch: coder_of(hyper_tables(arch)) for arch in HYPER}


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
        with pytest.raises(InputError, match="25 bits"):
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
    halves = np.arange(-3, 3, 0.25, dtype=np.float32)
    assert np.array_equal(device.nearest(halves), np.rint(halves))
    for wrong in (np.nan, np.inf, -np.inf, 2.0**31):
        y[1, 1, 1] = wrong
        for refused in (lambda: device.round(130, 90, y, z), lambda: device.nearest(y)):
            with pytest.raises(InputError, match="not finite"):
                refused()


@pytest.mark.parametrize("name", NAMES)
def test_of_damaged_files_it_reads_what_the_python_coder_reads_and_refuses_what_it_refuses(
    name: str, coders: dict[str, AnyCoder], devices: dict[str, DeviceCoder]
) -> None:
    coder, device = coders[name], devices[name]
    files = []
    for size, spread in (((40, 30), 1), ((144, 224), 9), ((1, 1), 1)):
        symbols, z = symbols_for(coder, *size, spread)
        files.append(pack(*size, symbols, coder, z))
    start = 12 + (name != "bmshj2018_factorized")
    wrong = [*damaged(files, 60, seed=0), *map(forged, damaged(files, 150, seed=1))]
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
    assert 0 < read < 100


@pytest.mark.parametrize("name", NAMES)
def test_of_damaged_tables_it_opens_what_the_python_coder_opens(
    name: str, coders: dict[str, AnyCoder], library: Path
) -> None:
    whole = to_bytes(coders[name].tables)

    def sealed(data: bytes) -> bytes:
        return data[:8] + struct.pack("<I", zlib.crc32(data[12:])) + data[12:]

    head = range(12, 12 + (16 if name == "bmshj2018_factorized" else 40), 4)
    wrong = [sealed(whole[:i] + struct.pack("<I", n) + whole[i + 4 :]) for i in head for n in (0, 1, 2**31, 2**32 - 1)]
    wrong += [
        *damaged([whole], 60, seed=0),
        *(sealed(each) for each in damaged([whole], 200, seed=1) if len(each) > 12),
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
    assert 0 < opened < 150


def test_damaged_files_and_tables_make_no_sanitizer_speak(coders: dict[str, AnyCoder], tmp_path: Path) -> None:
    """The driver also gives too little memory. `python -m benchmarks.device` does the same with 100,000 files."""
    compile_driver(tmp_path / "driver")
    found = fuzz(tmp_path / "driver", coders["mbt2018_mean"], 1_000, tmp_path)
    assert found["refused"] > 500
    assert found["accepted"] > 50


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

    assert nic("encode", "t.tables", "30", "40", *latents, "file").returncode == 0
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
