"""Some steps of each kind of run, through the real command: losses, faults, evaluation, checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from benchmarks.gpu.runs import logged, losses
from benchmarks.gpu.setting import Setting
from benchmarks.harness import Row
from codec.checkpoint import open_codec
from training.record import LAST

DISTILL_STEPS, TINY_DISTILL_STEPS = 20, 4
RD_SIDE = 176  # MS-SSIM needs 161 pixels


def relu(setting: Setting) -> Iterator[Row]:
    """ReLU, bf16, MSE + bpp."""
    yield from _some_steps(setting, "relu, bf16, mse", "--act", "relu", "--loss_type", "mse")


def gdnish(setting: Setting) -> Iterator[Row]:
    """GDNishLite, fp16 with its loss scaler, the rate-distortion loss with MS-SSIM."""
    side = ("--input_size", RD_SIDE, "--batch_size", 2) if setting.tiny else ()
    yield from _some_steps(
        setting, "gdnish, fp16, rd", "--act", "gdnish", "--loss_type", "rd", "--amp_dtype", "fp16", *side
    )


def gate_mlp(setting: Setting) -> Iterator[Row]:
    """gate_mlp that first learns the map of a GDN codec, which is trained here for as many steps."""
    teacher = setting.train("teacher", "--act", "gdn", "--loss_type", "mse", "--max_steps", setting.steps)
    distill = TINY_DISTILL_STEPS if setting.tiny else DISTILL_STEPS
    start = ("--init_checkpoint", teacher / LAST, "--distill_steps", distill)
    yield from _some_steps(setting, "gate_mlp, distilled start, mse", "--act", "gate_mlp", "--loss_type", "mse", *start)


def hyperprior(setting: Setting) -> Iterator[Row]:
    """The mean-scale hyperprior with ReLU in GDN's place, bf16."""
    words = ("--arch", "mbt2018_mean", "--act", "relu", "--loss_type", "mse")
    yield from _some_steps(setting, "mbt2018_mean, relu, bf16, mse", *words)


def qat(setting: Setting) -> Iterator[Row]:
    """ReLU in int8 through all three phases."""
    yield from _some_steps(setting, "relu, QAT, mse", "--act", "relu", "--loss_type", "mse", *setting.qat())


def _some_steps(setting: Setting, what: str, *options: object) -> Iterator[Row]:
    end = ("--max_steps", setting.steps, "--eval_every", 100_000)  # an evaluation at the end
    folder = setting.train("run", *end, *options)
    yield from rows_of(setting, what, folder)


def rows_of(setting: Setting, what: str, folder: Path) -> Iterator[Row]:
    """What a finished run must show; its checkpoint must open."""
    open_codec(folder / LAST)
    series, (evaluated,) = losses(folder), logged(folder, "validation")
    what = f"{setting.steps} steps of {what}"
    yield Row(f"{what}: finite losses", len(series), "steps", at_least=setting.steps)
    yield Row(f"{what}: skipped steps", len(logged(folder, "fault")), "steps", at_most=0)
    yield Row(
        f"{what}: loss of the last five steps over the first five",
        fmean(series[-5:]) / fmean(series[:5]),
        "x",
        at_most=setting.bar(1.0),
        sides={"first loss": series[0], "last loss": series[-1], "validation PSNR, dB": evaluated["psnr"]},
    )
