"""`python -m benchmarks.data [COCO_ROOT]`: crops read and photographs prepared a second, on one core.

Without a COCO root the photographs are JPEG windows of those that scikit-image ships, of COCO's usual size.
"""

import contextlib
import io
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from compressai.datasets import ImageFolder
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.harness import Row, alternate, publish
from benchmarks.pictures import image_folder, prepared
from coco224 import prepare
from coco224.batches import TrainBatches, train_loader
from coco224.dataset import Rows, open_rows
from coco224.photographs.sample import SAMPLE, sample_splits
from coco224.reading.rows import Pixels

ROUNDS = 7
BATCH = 16
SIDE = 224
CROPS = 128  # of each of five photographs: 96 MB of raw rows, more than a cache holds
BATCHES = {"ours": 200, "theirs": 4}  # a round
PHOTOGRAPHS = 192


def main() -> None:
    """Both paths, on one core of this machine."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = reading(folder)
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else coco_root(folder / SAMPLE)
        rows += preparing(root, folder)
    os.sched_setaffinity(0, cores)
    publish("data", rows)


def reading(folder: Path) -> list[Row]:
    """Batches of the trainer's loader, warm and cold, against CompressAI's ImageFolder on the same crops as PNG."""
    coco224 = prepared(folder, CROPS)
    from_disk = cold(coco224)
    ours = train_loader(in_batches(opened(coco224)), 0, sys.maxsize, num_workers=0, pin_memory=False)
    window = transforms.Compose([transforms.RandomCrop(SIDE), transforms.ToTensor()])
    files = ImageFolder(str(image_folder(coco224, folder / "png", "png")), split="train", transform=window)
    theirs = itertools.chain.from_iterable(itertools.repeat(DataLoader(files, BATCH, shuffle=True, drop_last=True)))
    seconds = alternate({"ours": taking(ours, BATCHES["ours"]), "theirs": taking(theirs, BATCHES["theirs"])}, ROUNDS)
    rates = {side: BATCH * BATCHES[side] / seconds[side] for side in seconds}
    sides = {"ours, crops/s": rates["ours"], "ImageFolder, crops/s": rates["theirs"]}
    what = f"crops/s read into batches of {BATCH}, raw encoding, one core, warm page cache"
    return [
        Row(what, rates["ours"], "crops/s", at_least=20_000),
        Row("the same against ImageFolder on PNG crops", rates["ours"] / rates["theirs"], "x", 30, sides=sides),
        from_disk,
    ]


def cold(coco224: Path) -> Row:
    """Batches from the disk. Each round begins without the rows in the page cache, with a fresh mapping."""
    seconds: dict[str, list[float]] = {"announced": [], "not announced": []}
    for _ in range(ROUNDS):
        for side, taken in seconds.items():
            rows = opened(coco224)
            if side == "not announced":
                rows.expect = lambda indices: None  # type: ignore[method-assign]
            batches = in_batches(rows)
            drop_pages(coco224)
            start = time.perf_counter()
            taking(train_loader(batches, 0, batches.steps_per_epoch, num_workers=0, pin_memory=False), sys.maxsize)()
            taken.append(time.perf_counter() - start)
    crops = batches.steps_per_epoch * BATCH
    rates = {side: crops / median(taken) for side, taken in seconds.items()}
    sides = {f"{side}, crops/s": rate for side, rate in rates.items()}
    what = f"crops/s read into batches of {BATCH}, raw encoding, one core, cold page cache, the next rows announced"
    return Row(what, rates["announced"], "crops/s", sides=sides)


def drop_pages(coco224: Path) -> None:
    """Has the kernel forget the training rows. A file system in memory (tmpfs) keeps them."""
    for path in (coco224 / "train").glob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_batches(rows: Rows) -> TrainBatches:
    """The trainer's batches of whole rows."""
    return TrainBatches(
        rows, seed=0, input_size=SIDE, hflip=False, batch_size=BATCH, grad_accum=1, rank=0, world_size=1
    )


def taking(batches: Iterator[Any], count: int) -> Callable[[], None]:
    """A round that takes so many batches."""

    def take() -> None:
        for _ in itertools.islice(batches, count):
            pass

    return take


def preparing(root: Path, folder: Path) -> list[Row]:
    """`coco224.prepare` against a plain Pillow loop over the same files, which saves its crops or drops them."""
    paths = sorted(path for path in (root / "train2017").iterdir())
    out, pngs = folder / "prepared", folder / "loop"
    pngs.mkdir()
    words = ["--coco_dir", str(root), "--out_dir", str(out), "--include_val", "false", "--num_proc", "1"]

    def ours() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = prepare.main([*words, "--overwrite", "true"])
        assert status == 0

    def loop(save: Callable[[Image.Image, Path], object]) -> Callable[[], None]:
        def run() -> None:
            for path in paths:
                save(fit(path), path)

        return run

    sides = {
        "ours": ours,
        "loop, PNG": loop(lambda crop, path: crop.save(pngs / f"{path.stem}.png")),
        "loop, JPEG": loop(lambda crop, path: crop.save(pngs / f"{path.stem}.jpg", quality=95)),
        "loop, kept nowhere": loop(lambda crop, path: None),
        "decoding alone": lambda: [Image.open(path).load() for path in paths],
    }
    seconds = alternate(sides, ROUNDS)
    rates = {f"{side}, pictures/s": len(paths) / taken for side, taken in seconds.items()}
    ratios = {side: taken / seconds["ours"] for side, taken in seconds.items()}
    likeness = [psnr(row, np.asarray(fit(path))) for row, path in zip(whole(opened(out)), paths, strict=True)]
    floor = f"decoding alone allows {ratios['loop, kept nowhere'] / ratios['decoding alone']:.2f} x"
    photographs = f"{len(paths)} JPEG photographs of {root.name}"
    what = f"pictures/s prepared, {photographs}, one core, against a Pillow loop with the same crop"
    return [
        Row(f"{what} that saves PNG, lossless as ours is", ratios["loop, PNG"], "x", at_least=3, sides=rates),
        Row("the same, the loop saving JPEG of quality 95", ratios["loop, JPEG"], "x"),
        Row("the same, the loop's crops kept nowhere", ratios["loop, kept nowhere"], "x", note=floor),
        Row(
            "least PSNR between the two crops of a picture",
            min(likeness),
            "dB",
            at_least=40,
            sides={"median, dB": median(likeness)},
        ),
    ]


def fit(path: Path) -> Image.Image:
    """The crop as one writes it with Pillow."""
    return ImageOps.fit(Image.open(path).convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)


def opened(coco224: Path) -> Rows:
    """The training rows."""
    rows = open_rows(coco224, "train", use_prepared=True)
    assert rows is not None
    return rows


def whole(rows: Rows) -> Pixels:
    """Every row, [B, S, S, 3]."""
    corner = np.zeros(len(rows), np.int32)
    return rows.read(np.arange(len(rows)), corner, corner, rows.size)


def psnr(a: Pixels, b: Pixels) -> float:
    """In dB; 99 for identical pictures."""
    error = np.square(a.astype(np.float64) - b).mean()
    return 10 * math.log10(255**2 / error) if error else 99.0


def coco_root(root: Path) -> Path:
    """A COCO root of JPEG photographs of 640x480."""
    (root / "train2017").mkdir(parents=True)
    source = sample_splits(include_val=False)["train"]
    draw = np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        with Image.open(source.folder / source.names[number % len(source.names)]) as image:
            scale = max(640 / image.width, 480 / image.height) * draw.uniform(1, 1.5)
            photograph = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        left, top = draw.integers((photograph.width - 639, photograph.height - 479)).tolist()
        window = photograph.crop((left, top, left + 640, top + 480))
        window.save(root / "train2017" / f"{number:012d}.jpg", quality=95)
    return root


if __name__ == "__main__":
    main()
