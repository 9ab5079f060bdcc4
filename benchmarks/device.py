"""`python -m benchmarks.device`: the coder in C beside the Python coder: equal files, speed, damaged files."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.coding import SHAPE, WIDEST, drawn, drawn_hyper, quality_8
from benchmarks.everywhere import lively, rated
from benchmarks.harness import Row, alternate, publish
from codec.bitstream.container import latent_size, pack, unpack
from codec.bitstream.rate_coder import AnyCoder, RateCoder, at_rate, coder_of
from codec.bitstream.tables import Tables, to_bytes
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import ARCHITECTURES
from codec.network.codec import Codec
from codec.network.tables import tables_of
from export.device import DeviceCoder, compile_library
from export.device.compiling import CODER, SOURCES, compile_files

FILES = 10_000
DAMAGED = 100_000
WIDTHS = ((8, 12), (16, 24), (24, 9))
"""N and M of the codecs whose files are compared; the last M is no multiple of four."""
SPREADS = (1, 1, 3, 30, 3000)
"""Of symbols, over what the tables expect: from few symbols outside the tables to many."""
DRIVER = Path(__file__).parent / "device_fuzz.c"
SANITIZERS = ("-O1", "-g", "-D_POSIX_C_SOURCE=200809L", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LARGEST_FUZZED = 64
"""Megabytes that the driver gives to the coder for a file, at most."""

Symbols = NDArray[np.int32]


def symbols_for(
    coder: AnyCoder, height: int, width: int, spread: float = 1, rate: int | None = None
) -> tuple[Symbols, Symbols | None]:
    """Symbols of y and of z of a picture of this size, as the tables of the rate distribute them; those of y spread."""
    size, tables = latent_size(height, width), at_rate(coder, rate).tables
    if not isinstance(tables, Tables):
        return drawn_hyper(tables, *size, spread)
    return (drawn(tables, height * width, size) * spread).astype(np.int32), None


def equal_files(count: int, library: Path) -> int:
    """How many of `count` files are the same from both coders, and read the same by both."""
    random, equal = np.random.default_rng(0), 0
    sides = []
    for arch in ARCHITECTURES:
        for n, m in WIDTHS:
            for make in (lively, rated):
                tables = tables_of(make(arch, n, m))
                sides.append((coder_of(tables), DeviceCoder(to_bytes(tables), library)))
    for number in range(count):
        coder, device = sides[number % len(sides)]
        height, width = (int(side) for side in random.integers(1, 200, 2))
        rate = int(random.integers(coder.most + 1)) if isinstance(coder, RateCoder) else None
        symbols, z = symbols_for(coder, height, width, SPREADS[number % len(SPREADS)], rate)
        data = pack(height, width, symbols, coder, z, rate)
        theirs, ours = unpack(data, coder), device.unpack(data)
        same = theirs[:2] == ours[:2] and np.array_equal(theirs[2], ours[2])
        equal += int(same and device.pack(height, width, symbols, z, rate) == data)
    return equal


def codec_of(arch: str) -> Codec:
    """Quality 8 of an architecture, at about 2 bits a pixel."""
    return quality_8() if arch == ARCHITECTURES[0] else lively(arch, *zoo_widths(8), widest=WIDEST)


def speeds(library: Path) -> Iterator[Row]:
    """Files of 768x512 pixels on one core, in turn."""
    size = 16 * SHAPE[0], 16 * SHAPE[1]
    for arch in ARCHITECTURES:
        tables = tables_of(codec_of(arch))
        coder, device = coder_of(tables), DeviceCoder(to_bytes(tables), library)
        symbols, z = symbols_for(coder, *size)
        data = pack(*size, symbols, coder, z)
        for what, ours, theirs in (
            ("encoding", partial(device.pack, *size, symbols, z), partial(pack, *size, symbols, coder, z)),
            ("decoding", partial(device.unpack, data), partial(unpack, data, coder)),
        ):
            rounds = 41 if isinstance(tables, Tables) else 9
            seconds = alternate({"C": ours, "Python": theirs}, rounds, warmup=2)
            yield Row(
                f"{what} a file of {arch}, 768x512, quality 8, with C over Python and constriction",
                seconds["Python"] / seconds["C"],
                "x",
                at_least=2 if isinstance(tables, Tables) else None,
                sides={f"{side}, million symbols/s": symbols.size / 1e6 / each for side, each in seconds.items()},
                note=f"{8 * len(data) / (size[0] * size[1]):.2f} bpp" + ", h_s included" * (z is not None),
            )


def compile_driver(target: Path) -> None:
    """The driver with AddressSanitizer and UndefinedBehaviorSanitizer."""
    compile_files((str(DRIVER), *CODER), target, (*SANITIZERS, f"-I{SOURCES}"))


def fuzz(driver: Path, coder: AnyCoder, count: int, folder: Path, seed: int = 0) -> Mapping[str, Any]:
    """What the driver counted over `count` damaged files and tables of a codec.

    Raises:
        subprocess.CalledProcessError: a sanitizer reported something, or a file took more than 20 seconds.
    """
    (folder / "tables").write_bytes(to_bytes(coder.tables))
    words: list[str | Path] = [driver, str(seed), str(count), folder / "tables"]
    for size, spread in (((40, 30), 1), ((144, 224), 9), ((1, 1), 1), ((80, 60), 900)):
        symbols, z = symbols_for(coder, *size, spread)
        words.append(folder / f"{size[0]}.nic")
        (folder / f"{size[0]}.nic").write_bytes(pack(*size, symbols, coder, z))
    environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=4"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fuzzed(count: int, folder: Path) -> Sequence[Row]:
    """`count` damaged files and tables, under sanitizers."""
    compile_driver(folder / "driver")
    counts, reports = [], 0
    made = [make(arch, 8, 12) for make in (lively, rated) for arch in ARCHITECTURES]
    for seed, codec in enumerate(made):
        try:
            share = count // len(made) + (seed < count % len(made))
            counts.append(fuzz(folder / "driver", coder_of(tables_of(codec)), share, folder, seed))
        except subprocess.CalledProcessError as error:
            print(error.stderr)
            reports += 1
    sides = {key: float(sum(each[key] for each in counts)) for key in ("refused", "accepted")}
    return [
        Row(f"sanitizers' reports and hangs in {count:,} damaged files and tables", reports, "reports", None, 0, sides),
        Row("the slowest of them, with sanitizers", max((each["slowest"] for each in counts), default=0), "s", None, 5),
        Row(
            "the most memory that one of them took",
            max((each["megabytes"] for each in counts), default=0),
            "MB",
            at_most=LARGEST_FUZZED,
        ),
    ]


def main() -> None:
    """Measures on one core."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_library(folder / "libnic.so")
        same = equal_files(FILES, folder / "libnic.so")
        rows = [Row(f"files of {FILES:,} that are byte for byte the Python coder's", same, "files", FILES)]
        rows += speeds(folder / "libnic.so")
        publish("device", [*rows, *fuzzed(DAMAGED, folder)])


if __name__ == "__main__":
    main()
