"""`python -m benchmarks.gpu`: a GPU against its own matrix peak and CompressAI's way, quality 8."""

from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import Apart, Row, alternate, publish
from benchmarks.peers import CompressAIWay
from benchmarks.pictures import image_folder, prepared
from benchmarks.step import Step, trainer
from benchmarks.trainer import FAST
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import Architecture, BlockChoice
from codec.network.architectures import new_codec
from codec.network.complexity import training_flops

QUALITY, BATCH, SIDE = 8, 128, 224
STEPS = 20  # of a round: a step alone is too short for the clock
ROUNDS = 5
RELU = BlockChoice("relu")


def main() -> None:
    """Both bars, or a line where there is no GPU."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return
    options = ("--act", "relu", "--quality", QUALITY, "--batch_size", BATCH, "--loss_type", "mse", *FAST)
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        coco224 = prepared(folder, crops=2 * BATCH)
        pngs = image_folder(coco224, folder / "png", "png")
        makers: dict[str, tuple[Any, ...]] = {
            "ours": (many, trainer, coco224, folder / "run", *options),
            "theirs": (many, compressai, pngs),
        }
        sides = {side: stack.enter_context(closing(Apart(*make))) for side, make in makers.items()}
        seconds = alternate(sides, ROUNDS, warmup=2)
        peaks = {side: apart.peak_mb for side, apart in sides.items()}
    rates = {side: BATCH * STEPS / value for side, value in seconds.items()}
    flops = (
        training_flops(new_codec(Architecture(*zoo_widths(QUALITY), RELU, RELU)), BATCH, SIDE) * STEPS / seconds["ours"]
    )
    peak = matrix_peak()
    what = f"training, quality {QUALITY}, batch {BATCH}, ReLU everywhere, MSE + bpp"
    named = {"ours, pictures/s": rates["ours"], "CompressAI's way, pictures/s": rates["theirs"]}
    publish(
        "gpu",
        [
            Row(what, rates["ours"] / rates["theirs"], "x", at_least=3.0, sides=named),
            Row(
                f"share of the measured bf16 matrix peak, {what}",
                flops / peak,
                "of the peak",
                at_least=0.4,
                sides={"ours, TFLOP/s": flops / 1e12, "an 8192-wide matrix product, TFLOP/s": peak / 1e12},
            ),
            Row(f"peak memory of {what}", peaks["ours"] / peaks["theirs"], "x", at_most=1.0),
        ],
    )


def many(make: object, *args: object) -> Step:
    """A side whose round is many steps."""
    step: Step = make(*args)  # type: ignore[operator]

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


def compressai(folder: Path) -> Step:
    """CompressAI's way on the GPU."""
    return CompressAIWay(folder, QUALITY, BATCH, torch.device("cuda")).step


def matrix_peak(width: int = 8192, products: int = 20) -> float:
    """Floating-point operations per second of a large bf16 matrix product, by CUDA's own clock."""
    a, b = (torch.randn(width, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(products):
            a @ b
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / products)
    return float(2 * width**3 / median(seconds[1:]))


if __name__ == "__main__":
    main()
