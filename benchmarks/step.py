"""`python -m benchmarks.step`: pictures/s and memory of training, against CompressAI's way and the recipe's way."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.floor import Floor
from benchmarks.harness import Apart, Row, alternate, publish
from benchmarks.peers import CompressAIWay, RecipeWay
from benchmarks.pictures import image_folder, prepared
from benchmarks.trainer import FAST, Trainer
from training.memory import keep_freed_memory

ROUNDS = 4
BATCH = 16
MSE = ("--quality", 3, "--batch_size", BATCH, "--loss_type", "mse", *FAST)
RD = ("--quality", 8, "--batch_size", BATCH, "--loss_type", "rd", "--optimizer", "adamw", *FAST)
COMPRESSAI, RECIPE, FLOOR = "CompressAI's way", "the recipe's way", "convolutions alone"

Step = Callable[[], None]


def main() -> None:
    """All comparisons; each side is a process of its own."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        coco224 = prepared(folder)
        pngs, jpegs = (image_folder(coco224, folder / suffix, suffix) for suffix in ("png", "jpg"))
        publish("step", against_compressai(coco224, pngs, folder) + against_recipe(coco224, jpegs, folder))


def against_compressai(coco224: Path, pngs: Path, folder: Path) -> list[Row]:
    """Quality 3, MSE + bpp, GDN kept and with ReLU."""
    seconds, peaks = measure(
        {
            "gdn": (trainer, coco224, folder / "gdn", "--act", "gdn", *MSE),
            "relu": (trainer, coco224, folder / "relu", "--act", "relu", *MSE),
            COMPRESSAI: (compressai, pngs, 3),
            FLOOR: (floor, 3),
        }
    )
    what = f"training, quality 3, batch {BATCH}, MSE + bpp"
    return [
        speed(f"{what}, GDN kept", seconds, "gdn", COMPRESSAI, 3.5),
        speed(f"{what}, ReLU everywhere", seconds, "relu", COMPRESSAI, 4.5),
        memory(f"peak memory of {what}, GDN kept", peaks, "gdn", COMPRESSAI),
    ]


def against_recipe(coco224: Path, jpegs: Path, folder: Path) -> list[Row]:
    """Quality 8, GDNishLite everywhere, `rd` with MS-SSIM."""
    seconds, _ = measure(
        {
            "gdnish": (trainer, coco224, folder / "gdnish", "--act", "gdnish", *RD),
            RECIPE: (recipe, jpegs, 8),
            FLOOR: (floor, 8),
        }
    )
    what = f"training, quality 8, batch {BATCH}, GDNishLite everywhere, rd with MS-SSIM"
    return [
        speed(what, seconds, "gdnish", RECIPE, 2.0),
    ]


def measure(sides: dict[str, tuple[Any, ...]]) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a step of each side, and its peak memory in MB."""
    with ExitStack() as stack:
        apart = {name: stack.enter_context(closing(Apart(*side))) for name, side in sides.items()}
        seconds = alternate(apart, ROUNDS, warmup=2)
        return seconds, {name: side.peak_mb for name, side in apart.items()}


def trainer(coco224: Path, folder: Path, *options: object) -> Step:
    """Ours."""
    return Trainer(coco224, folder, *options).step


def compressai(folder: Path, quality: int) -> Step:
    """Their way, as they leave it."""
    return CompressAIWay(folder, quality, BATCH, device()).step


def recipe(folder: Path, quality: int) -> Step:
    """The recipe's way."""
    return RecipeWay(folder, quality, BATCH, device()).step


def floor(quality: int) -> Step:
    """The convolutions alone, with the trainer's allocator."""
    keep_freed_memory()
    return Floor(quality, BATCH, device()).step


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def speed(what: str, seconds: dict[str, float], ours: str, theirs: str, at_least: float) -> Row:
    """Pictures per second of both sides and their ratio."""
    rates = {"ours, pictures/s": BATCH / seconds[ours], f"{theirs}, pictures/s": BATCH / seconds[theirs]}
    note = ""
    if FLOOR in seconds:
        rates[f"{FLOOR}, pictures/s"] = BATCH / seconds[FLOOR]
        note = f"{seconds[FLOOR] / seconds[ours]:.2f} of what the convolutions alone allow"
    return Row(what, seconds[theirs] / seconds[ours], "x", at_least=at_least, sides=rates, note=note)


def memory(what: str, peaks: dict[str, float], ours: str, theirs: str) -> Row:
    """Peak memory of both sides and their ratio."""
    return Row(
        what,
        peaks[ours] / peaks[theirs],
        "x",
        at_most=1.0,
        sides={"ours, MB": peaks[ours], f"{theirs}, MB": peaks[theirs]},
    )


if __name__ == "__main__":
    main()
