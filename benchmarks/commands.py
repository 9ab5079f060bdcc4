"""Commands on inputs that are in order, which `benchmarks.hostile` damages, and strange values to put into them."""

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import originals
from benchmarks.damage import damaged

STRANGE: tuple[Any, ...] = (
    *(0, -1, 1, 7, 2**31, 2**63, 10**30, 1e308, -0.0, float("nan"), float("inf"), True, None),
    *("", "x", "\x1b[31m", "../../etc", "a" * 5000, "𝄞", "null", "1e9", [], {}, [[[]]], {"a": {"b": []}}),
)


PLUGINS = (
    *("", "x = 1", "def f(:", "import nowhere", "raise ValueError('\x1b[31m')", "1 / 0", "import sys; sys.exit(0)"),
    *("raise SystemExit", "def f(): f()\nf()", "raise KeyboardInterrupt", "\0", "assert False"),
    "from codec.blocks import register_activation\nregister_activation('relu')(int)",
    "from codec.blocks import register_activation\nregister_activation('mine')(5)",
    "from codec.blocks import register_activation\nregister_activation('')(int)",
    "import codec.files\ncodec.files.FileCodec = None",
)
"""Plugins that do something else than to register a block."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        words: the module's name and its command line.
        picture: what a successful run must leave in `out`; None: any file will do.
    """

    words: list[str]
    out: Path | None = None
    picture: np.ndarray[Any, Any] | None = None


class Commands:
    """The commands, with codecs of every kind, their files and models, a dataset and a photograph in a folder."""

    def __init__(self, folder: Path) -> None:
        from skimage import data

        self.folder, self.photo = folder, folder / "photo.png"
        Image.fromarray(data.chelsea()[:96, :128]).save(self.photo)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            apart.submit(originals.make, folder, self.photo).result()
        self.originals = originals.read(folder)
        self.checkpoint = self.originals[0].checkpoint

    def compress(self, checkpoint: Path, place: Path) -> Case:
        return Case(["codec.compress", str(self.photo), str(place / "out.bin"), "--checkpoint", str(checkpoint)])

    def decompress(self, file: Path, place: Path, original: originals.Original) -> Case:
        out = place / "out.png"
        words = ["codec.decompress", str(file), str(out), "--checkpoint", str(original.checkpoint)]
        return Case(words, out, original.decoded)

    def decode(self, file: Path, place: Path, original: originals.Original) -> Case:
        out = place / "out.png"
        words = ["export.runtime", "decode", str(file), str(out), "--model", str(original.decoder)]
        return Case(words, out, original.by_runtime)

    def encode(self, source: Path, target: Path, chance: random.Random) -> Case:
        """With a codec of any kind, and some target, by its checkpoint or its exported encoder."""
        original = chance.choice(self.originals)
        rate = ["--rate=0", "--rate=0.4", "--target_bytes=600", "--target_bpp=0.7", "--target_bytes=1"]
        target_words = [chance.choice(rate)] if chance.random() < 0.4 else []
        if chance.random() < 0.5:
            words = ["export.runtime", "encode", str(source), str(target), "--model", str(original.encoder)]
        else:
            words = ["codec.compress", str(source), str(target), "--checkpoint", str(original.checkpoint)]
        return Case([*words, *target_words])


def damage(content: bytes, chance: random.Random) -> bytes:
    return next(damaged([content], 1, chance.randrange(2**32)))


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def strange(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, dropped or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        changed = dict(value)
        if chance.random() < 0.2:
            del changed[name]
        elif chance.random() < 0.2:
            changed["extra"] = chance.choice(STRANGE)
        else:
            changed[name] = strange(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.6:
        place = chance.randrange(len(value))
        return [*value[:place], strange(value[place], chance), *value[place + 1 :]]
    return chance.choice(STRANGE)
