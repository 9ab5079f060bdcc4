"""The format of a row, and the writing of one Arrow file from consecutive photographs."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from coco224.photographs.crops import boxes, cut, shortest_decoded
from coco224.photographs.decode import BadPhotograph, read_photograph

ENCODINGS: dict[str, dict[str, Any]] = {
    "raw": {},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "method": 0},  # 4 times PNG's speed at 4/5 of its size
    "jpeg": {"format": "JPEG", "quality": 95},
}
_BATCH_BYTES = 8 * 2**20  # decoded crops that a worker keeps before it writes; more is slower (new memory pages)


class Stopped(Exception):
    """A signal stopped the run; finished shards are kept."""


@dataclass(frozen=True)
class Recipe:
    """The options that a crop's bytes depend on."""

    size: int
    crop: str
    crops_per_image: int
    seed: int
    encoding: str


@dataclass(frozen=True)
class Skipped:
    """A file that gave no row. `unreadable` files count for --max_bad, files too small for a tile do not."""

    file_name: str
    reason: str
    unreadable: bool


@dataclass(frozen=True)
class Shard:
    """One Arrow file to write: files `first`, `first + 1`, .. of a split."""

    path: Path
    folder: Path
    names: tuple[str, ...]
    first: int


@dataclass(frozen=True)
class Report:
    """The result of a shard. Its report is written last, so a shard with a report is complete."""

    rows: int
    sha256: str
    size: int
    skipped: tuple[Skipped, ...]

    @classmethod
    def load(cls, path: Path) -> "Report":
        fields = json.loads(path.read_text())
        return cls(**{**fields, "skipped": tuple(Skipped(**entry) for entry in fields["skipped"])})


def features(encoding: str) -> Any:
    """The `datasets.Features` of a row.

    image: `raw`: size*size*3 bytes, HxWx3 uint8; else a `datasets.Image`, which the Hub's viewer shows.
    file_name: relative to the split's folder. width, height: of the upright photograph in pixels.
    crop_box: left, top, right, bottom in those pixels: `photo.resize((size, size), BICUBIC, box=crop_box)`.
    """
    import datasets  # a second of imports that neither --help nor a worker needs

    return datasets.Features(
        {
            "image": datasets.Value("binary") if encoding == "raw" else datasets.Image(),
            "file_name": datasets.Value("string"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "crop_box": datasets.List(datasets.Value("float64"), 4),
        }
    )


def write_shard(shard: Shard, recipe: Recipe, schema: pa.Schema, tick: Callable[[], None]) -> Report:
    """Writes one shard under a temporary name, syncs it, and renames it.

    Record batches have a fixed number of rows, so the bytes depend only on the files and the recipe.

    Args:
        tick: called before every photograph; it may raise to stop the work.

    Raises:
        OSError: the disk is full or cannot be written. The incomplete file is removed.
    """
    rows_per_batch = max(1, _BATCH_BYTES // (recipe.size**2 * 3))
    skipped: list[Skipped] = []
    rows = 0
    torn = shard.path.with_suffix(f".tmp{os.getpid()}")
    try:
        with pa.OSFile(str(torn), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            batch: list[dict[str, Any]] = []
            for row in _rows(shard, recipe, skipped, tick):
                batch.append(row)
                if len(batch) == rows_per_batch:
                    stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                    rows += len(batch)
                    batch.clear()
            if batch:
                stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                rows += len(batch)
        with torn.open("rb+") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        report = Report(rows, digest, torn.stat().st_size, tuple(skipped))
        torn.rename(shard.path)
    finally:
        torn.unlink(missing_ok=True)
    return report


def _rows(shard: Shard, recipe: Recipe, skipped: list[Skipped], tick: Callable[[], None]) -> Iterator[dict[str, Any]]:
    shortest = shortest_decoded(recipe.crop, recipe.size)
    for index, name in enumerate(shard.names, start=shard.first):
        tick()
        # Arrow and JSON need UTF-8: a name that is not UTF-8 is escaped.
        file_name = name.encode("utf-8", "backslashreplace").decode()
        try:
            photograph = read_photograph(shard.folder / name, shortest)
        except BadPhotograph as error:
            skipped.append(Skipped(file_name, str(error), unreadable=True))
            continue
        width, height = photograph.width, photograph.height
        where = boxes(
            recipe.crop,
            width,
            height,
            recipe.size,
            seed=recipe.seed,
            index=index,
            count=recipe.crops_per_image,
        )
        if not where:
            reason = f"no whole {recipe.size}x{recipe.size} tile in {width}x{height}"
            skipped.append(Skipped(file_name, reason, unreadable=False))
        for box in where:
            crop = cut(photograph, box, recipe.size)
            yield {
                "image": _encoded(crop, recipe.encoding),
                "file_name": file_name,
                "width": width,
                "height": height,
                "crop_box": box,
            }


def _encoded(crop: Image.Image, encoding: str) -> bytes | dict[str, bytes | None]:
    if encoding == "raw":
        return crop.tobytes()
    file = io.BytesIO()
    crop.save(file, **ENCODINGS[encoding])
    return {"bytes": file.getvalue(), "path": None}
