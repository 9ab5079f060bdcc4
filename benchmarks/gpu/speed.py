"""Speed and memory of training and evaluation, and the shares of a step."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch

from benchmarks.gpu.setting import NotApplicableError, Setting
from benchmarks.gpu.shares import busy_seconds
from benchmarks.harness import Row, alternate, peak_mb, wait_for_gpu
from benchmarks.trainer import Trainer
from codec.evaluation.figures import evaluate
from codec.network.complexity import training_flops

SIDE = 224
LARGE, SMALLER = (128,), (64, 16)
"""Sizes of batches. The first one is that of the headline figures."""

MEMORY_AHEAD = 70e9
"""Bytes of a GPU on which three codecs of quality 8 with the large batch fit beside small ones."""

ROUNDS = 3
STEPS = 20  # of a round: a step alone is too short for the clock

Step = Callable[[], object]


def compile_ahead(setting: Setting, quality: int, act: str) -> Iterator[Row]:
    """One step and one evaluation with the large batch, whose code the measurement then finds in Inductor's cache.

    Several of these run at once, and beside the checks. A measurement runs alone, so it would compile alone.

    Raises:
        NotApplicableError: the GPU has too little memory for several at once.
    """
    if setting.device == "cuda" and torch.cuda.mem_get_info()[1] < MEMORY_AHEAD:
        raise NotApplicableError("little memory for several parts at once: it compiles when it is measured")
    (batch,) = (2,) if setting.tiny else LARGE
    begin = time.perf_counter()
    trainer = Trainer(setting.coco224, setting.folder / "run", *options(setting, quality, act, batch))
    trainer.step()
    evaluation(trainer)()
    wait_for_gpu()
    yield Row(f"time to compile, quality {quality}, {act}, batch {batch}", time.perf_counter() - begin, "s")


def speed(setting: Setting, quality: int, act: str, batches: Sequence[int]) -> Iterator[Row]:
    """Training and evaluation with each batch size: pictures/s, share of the matrix peak, shares of kinds, memory."""
    for batch in (2,) if setting.tiny else batches:
        what = f"training, quality {quality}, {act}, batch {batch}, bf16, MSE + bpp"
        try:
            yield _speed(setting, quality, act, batch, what)
        except torch.OutOfMemoryError:
            yield Row(f"{what}: needs more memory than this GPU has", torch.cuda.mem_get_info()[1] / 1e9, "GB")
        forget()


def forget() -> None:
    """Gives back what the last trainer and its graphs hold."""
    torch._dynamo.reset()
    gc.collect()


def _speed(setting: Setting, quality: int, act: str, batch: int, what: str) -> Row:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(setting.coco224, setting.folder / f"run-{batch}", *options(setting, quality, act, batch))
    seconds = seconds_of(setting, trainer.step)
    memory = peak_mb()
    busy = busy_seconds(trainer.step)
    flops = training_flops(trainer.run.codec, batch, side(setting)) / seconds
    shares = {f"{kind}, of the step": value / seconds for kind, value in sorted(busy.items())}
    sides = {
        "evaluation, pictures/s": batch / seconds_of(setting, evaluation(trainer)),
        "TFLOP/s": flops / 1e12,
        "of the bf16 matrix peak": flops / matrix_peak(setting),
        **shares,
        "idle, of the step": max(0.0, 1 - busy.total() / seconds),
        "peak memory, MB": memory,
    }
    return Row(what, batch / seconds, "pictures/s", sides=sides)


def determinism(setting: Setting) -> Iterator[Row]:
    """What it costs that a run repeats bit for bit: a step with and without --deterministic."""
    quality, act, (batch,) = 8, "relu", (2,) if setting.tiny else LARGE
    words = options(setting, quality, act, batch)

    def rate(flag: str) -> float:
        trainer = Trainer(setting.coco224, setting.folder / flag, *words, "--deterministic", flag)
        return batch / seconds_of(setting, trainer.step)

    exact = rate("true")
    forget()
    fastest = rate("false")
    what = f"speed with the same bits in every run over the fastest, quality {quality}, {act}, batch {batch}"
    yield Row(what, exact / fastest, "x", sides={"exact, pictures/s": exact, "fastest, pictures/s": fastest})


def options(setting: Setting, quality: int, act: str, batch: int) -> list[str]:
    """The training options of a measurement, which begins with random weights and must not diverge."""
    compiles = "true" if setting.device == "cuda" else "false"
    what = ("--act", act, "--loss_type", "mse", "--lr", 1e-4, "--batch_size", batch, "--compile", compiles)
    widths = () if setting.tiny else ("--quality", quality)
    return setting.options(*what, *widths)


def side(setting: Setting) -> int:
    """The side of the pictures."""
    return 64 if setting.tiny else SIDE


def evaluation(trainer: Trainer) -> Step:
    """Evaluates the batch of a step, figures included, as the end of an epoch does."""
    run = trainer.run
    images = next(run.micro_batches).images.cpu()
    codec = run.shipped()

    def step() -> None:
        list(evaluate(codec, [images], run.device, batch_size=len(images)))

    return step


def seconds_of(setting: Setting, step: Step) -> float:
    """Median seconds of a step, without the first, which compile."""
    rounds, steps = (1, 1) if setting.tiny else (ROUNDS, STEPS)
    return alternate({"": repeated(step, steps)}, rounds)[""] / steps


def repeated(step: Step, steps: int) -> Step:
    """A round of many steps."""

    def many() -> None:
        for _ in range(steps):
            step()

    return many


def matrix_peak(setting: Setting) -> float:
    """Floating-point operations per second of a large bf16 matrix product."""
    width, products = (64, 1) if setting.tiny else (8192, 20)
    a, b = (torch.randn(width, width, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):
        wait_for_gpu()
        start = time.perf_counter()
        for _ in range(products):
            a @ b
        wait_for_gpu()
        seconds.append((time.perf_counter() - start) / products)
    return float(2 * width**3 / median(seconds[1:]))
