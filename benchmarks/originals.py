"""Inputs that are in order, of codecs of every kind: what `benchmarks.hostile` damages."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS = (
    ("bmshj2018_factorized", 1, False),
    ("bmshj2018_factorized", 2, True),
    ("bmshj2018_hyperprior", 1, True),
    ("bmshj2018_hyperprior", 2, False),
    ("mbt2018_mean", 1, False),
    ("mbt2018_mean", 2, True),
)
"""Architecture, number of rates, and whether it is quantized."""
N, M = 8, 12


@dataclass(frozen=True)
class Original:
    """A codec and what belongs to it.

    Attributes:
        checkpoint, state: its checkpoint, and its state dict as a `.pth.tar`.
        encoder, decoder: its exported models, with their tables beside them.
        packed: the file of the photograph.
        decoded, by_runtime: the pictures that the checkpoint and the exported decoder make of it, uint8 [H, W, 3].
    """

    checkpoint: Path
    state: Path
    encoder: Path
    decoder: Path
    packed: bytes
    decoded: NDArray[np.uint8]
    by_runtime: NDArray[np.uint8]


def make(folder: Path, photo: Path) -> None:
    """Writes all of them and a small dataset to a folder; for a process of its own, which loads what is slow."""
    import torch

    from coco224 import prepare

    torch.set_num_threads(1)
    found = [make_one(folder / f"{number}", photo, *kind) for number, kind in enumerate(KINDS)]
    (folder / "originals").write_bytes(pickle.dumps(found))
    words = ["--coco_dir", "sample", "--out_dir", str(folder / "dataset"), "--size", "64"]
    prepare.main([*words, "--crop", "center", "--num_proc", "1", "--include_val", "true"])


def read(folder: Path) -> Sequence[Original]:
    """Those that `make` wrote there."""
    found: Sequence[Original] = pickle.loads((folder / "originals").read_bytes())
    return found


def make_one(folder: Path, photo: Path, arch: str, rates: int, int8: bool) -> Original:
    """One of them."""
    import torch

    from benchmarks.deployment import with_ranges
    from benchmarks.everywhere import lively, rated
    from codec.bitstream.tables import to_bytes
    from codec.checkpoint import Description, save_codec
    from codec.files import FileCodec
    from codec.network.tables import tables_of
    from codec.quantization.freeze import frozen
    from export.graph.build import build, parts_of, write_all
    from export.graph.parts import Part
    from export.runtime import Model, decode

    folder.mkdir()
    codec: Any = rated(arch, N, M, rates) if rates > 1 else lively(arch, N, M)
    if int8:
        codec = with_ranges(codec, arch != "bmshj2018_factorized")
    save_codec(folder / "c.safetensors", codec, Description())
    torch.save(codec.state_dict(), folder / "c.pth.tar")
    pixels = np.array(Image.open(photo).convert("RGB"))
    coded = FileCodec(codec)
    (packed,) = coded.compress(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    shipped, tables = frozen(codec) if int8 else codec, tables_of(codec)
    parts: tuple[Part, ...] = ("encoder", "decoder")
    for part in parts:
        graphs = {
            each: build(shipped, each, "concat", torch.rand(1, 3, 96, 96), dynamic=True, fingerprint=tables.fingerprint)
            for each in parts_of(shipped, part)
        }
        write_all(folder / f"{part}.onnx", graphs, to_bytes(tables))
    return Original(
        folder / "c.safetensors",
        folder / "c.pth.tar",
        folder / "encoder.onnx",
        folder / "decoder.onnx",
        packed,
        coded.decompress([packed])[0].permute(1, 2, 0).numpy(),
        decode(packed, Model(folder / "decoder.onnx", "decoder")),
    )
