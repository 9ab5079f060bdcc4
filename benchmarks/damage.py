"""`python -m benchmarks.damage`: 10,000 damaged files; none may crash the decoder, hang it or give a picture."""

import random
import resource
import struct
import time
import zlib
from collections.abc import Iterator, Sequence

import torch
from skimage import data

from benchmarks.harness import Row, publish
from codec.description.architecture import Architecture
from codec.errors import InputError
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.tables import with_tables

FILES = 10_000
SIZES = ((300, 451), (97, 33), (1, 1))


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
    torch.manual_seed(0)
    codec = new_codec(Architecture(16, 24))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    coded = FileCodec(with_tables(codec))
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
    accepted = sum(_decodes(coded, forged(file)) for file in damaged(files, FILES // 10, seed=1) if _small(file))
    publish(
        "damage",
        [
            Row(f"pictures from {FILES:,} damaged files, crashes and hangs none", pictures, "pictures", at_most=0),
            Row("slowest refusal of a damaged file", 1e3 * slowest, "ms", at_most=1000),
            Row("memory that refusing them took", grown, "MB", at_most=10),
            Row(
                "decoded of damaged files whose checksum was made to fit",
                accepted,
                "pictures",
                note="no checksum stops a forger; there are no crashes and no hangs",
            ),
        ],
    )


def _decodes(codec: FileCodec, file: bytes) -> int:
    try:
        return len(codec.decompress([file]))
    except InputError:
        return 0


def _small(file: bytes) -> bool:
    """Whether a forged file claims a picture that this benchmark has the time to decode."""
    sides = []
    place = 12
    for _ in range(2):
        side, shift = 0, 0
        while place < len(file) and shift < 35:
            side |= (file[place] & 127) << shift
            shift += 7
            place += 1
            if file[place - 1] < 128:
                break
        sides.append(side)
    return sides[0] * sides[1] < 2_000_000


if __name__ == "__main__":
    main()
