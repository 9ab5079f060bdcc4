"""`python -m benchmarks.damage`: 10,000 damaged files of each kind of codec, and what the decoder makes of them.

None may crash the decoder, hang it or give a picture.
"""

import random
import resource
import struct
import time
import zlib
from collections.abc import Iterator, Sequence

import torch
from skimage import data

from benchmarks.everywhere import KINDS, SEVERAL, lively, rated
from benchmarks.harness import Row, publish
from codec.bitstream.container import RATE_VERSION, VERSION
from codec.errors import InputError
from codec.files import FileCodec

FILES = 10_000
SIZES = ((300, 451), (97, 33), (1, 1))
N, M = 16, 24
MOST_PIXELS = 2_000_000
"""Of a forged file that is decoded."""


def damaged(files: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` files that are none of `files`: bits flipped, ends cut off, two spliced, random bytes, parts left out."""
    chance = random.Random(seed)
    made = 0
    while made < count:
        file, other = bytearray(chance.choice(files)), chance.choice(files)
        cut = chance.randrange(len(file))
        match chance.randrange(5):
            case 0:
                for _ in range(chance.choice((1, 1, 2, 8, 64))):
                    file[chance.randrange(len(file))] ^= 1 << chance.randrange(8)
            case 1:
                del file[cut:]
            case 2:
                file[cut:] = other[chance.randrange(len(other)) :]
            case 3:
                file[cut:] = chance.randbytes(len(file) - cut)
            case 4:
                file[cut : cut + chance.randrange(1, 40)] = b""
        if bytes(file) not in files:
            made += 1
            yield bytes(file)


def forged(file: bytes) -> bytes:
    """The file with the checksum that fits it: what damage cannot do and a stranger can."""
    return file[:8] + struct.pack("<I", zlib.crc32(file[:8] + file[12:])) + file[12:]


def main() -> None:
    """Decodes them all in this process: a crash would end it."""
    publish("damage", [row for kind in KINDS for row in rows(kind)])


def rows(kind: str) -> Iterator[Row]:
    """The result of the files of a kind of codec, of `KINDS`."""
    arch = kind.removesuffix(SEVERAL)
    coded = FileCodec(lively(arch, N, M) if kind == arch else rated(arch, N, M))
    picture = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None]
    files = [coded.compress(picture[..., :height, :width])[0] for height, width in SIZES]
    coded.decompress(files)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pictures, slowest = 0, 0.0
    for file in damaged(files, FILES, seed=0):
        start = time.perf_counter()
        pictures += _decodes(coded, file)
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    what = f"pictures from {FILES:,} damaged files, crashes and hangs none: {kind}"
    yield Row(what, pictures, "pictures", at_most=0)
    yield Row(f"slowest refusal of a damaged file: {kind}", 1e3 * slowest, "ms", at_most=1000)
    yield Row(f"memory that refusing them took: {kind}", grown, "MB", at_most=10)
    forgeries = [forged(file) for file in damaged(files, FILES // 10, seed=1)]
    taken, slowest = 0, 0.0
    for file in filter(_small, forgeries):
        start = time.perf_counter()
        taken += _decodes(coded, file)
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    yield Row(
        f"decoded of {len(forgeries):,} damaged files whose checksum was made to fit: {kind}",
        taken,
        "pictures",
        sides={"slowest, s": slowest, "memory, MB": grown},
        note=f"no checksum stops a forger; no crash and no hang; up to {MOST_PIXELS / 1e6:.0f} megapixels are decoded",
    )


def sides_begin(file: bytes | bytearray) -> int:
    """Where a file of any version has the sides of its picture: after its architecture and rate, if it has these."""
    version = file[3]
    place = 12 + (version != VERSION)
    if version == RATE_VERSION:
        while place < len(file) and file[place] > 127:
            place += 1
        place += 1
    return place


def _decodes(codec: FileCodec, file: bytes) -> int:
    try:
        return len(codec.decompress([file]))
    except InputError:
        return 0


def _small(file: bytes) -> bool:
    """Whether a forged file claims a picture that this benchmark has the time to decode."""
    sides, place = [], sides_begin(file)
    for _ in range(2):
        side, shift = 0, 0
        while place < len(file) and shift < 35:
            side |= (file[place] & 127) << shift
            shift += 7
            place += 1
            if file[place - 1] < 128:
                break
        sides.append(side)
    return sides[0] * sides[1] < MOST_PIXELS


if __name__ == "__main__":
    main()
