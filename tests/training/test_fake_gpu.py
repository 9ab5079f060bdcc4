"""A step and an evaluation on a GPU, followed without one: what lies where, and what the host waits for."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from fake_gpu import Seen, step_and_evaluate
from programs import SMALL, into

pytestmark = pytest.mark.slow

OPTIONS = (*SMALL, "--batch_size", 2, "--compile", "false", "--replace_parts", "all", "--train_scope", "all")
BF16, FP16, FP32 = ("--amp_dtype", "bf16"), ("--amp_dtype", "fp16"), ("--amp", "false")
HYPERPRIOR, MEANS = ("--arch", "bmshj2018_hyperprior"), ("--arch", "mbt2018_mean")
SIDE = ("--input_size", 176)  # MS-SSIM needs 161 pixels
MSE = ("--loss_type", "mse", "--input_size", 64)
MSE_RATES = (*MSE, "--rates", 3, "--lambda_mse", "0.001:0.1")
RD_RATES = ("--loss_type", "rd", *SIDE, "--rates", 3, "--lambda_bpp", "0.001:0.1")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, since torch remembers the GPU, and no fork, since autograd refuses to work in one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def seen(pool: ProcessPoolExecutor, coco224: Path, tmp_path: Path) -> Callable[..., Seen]:
    """seen(*options, done=0): what a step of a run does after so many steps on the CPU, and then an evaluation."""

    def look(*options: object, done: int = 0) -> Seen:
        words = [str(word) for word in ("--coco_dir", coco224, *OPTIONS, *into(tmp_path / "run"), *options)]
        return pool.submit(step_and_evaluate, words, done).result(timeout=300)

    return look


@pytest.mark.parametrize(
    "options",
    [
        ("relu", *BF16, *SIDE),
        ("relu", *FP16, *MEANS, *MSE_RATES),
        ("relu", *FP32, *HYPERPRIOR, *MSE),
        ("gdnish", *BF16, *HYPERPRIOR, *RD_RATES),
        ("gdnish", *FP16, *MSE, "--grad_accum", 2),
        ("gdnish", *FP32, *MEANS, *MSE_RATES),
        ("gate", *BF16, *MEANS, *MSE, "--local_fp32", "all_normexp"),
        ("gate", *FP16, *HYPERPRIOR, *MSE, "--overflow_check", "false"),
        ("gate", *FP32, *MSE_RATES),
        ("gate_mlp", *BF16, *MSE_RATES, "--channels_last", "false"),
        ("gate_mlp", *FP16, *HYPERPRIOR, *SIDE, "--local_fp32", "entropy+decoder"),
        ("gate_mlp", *FP32, *MEANS, *MSE, "--max_grad_norm", 0),
        ("gdn", *BF16, *MEANS, *MSE_RATES, "--local_fp32", "none"),
        ("gdn", *FP16, *MSE, "--eb_aux", "false"),
        ("gdn", *FP32, *HYPERPRIOR, *SIDE, "--loss_type", "rd"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(options: tuple[object, ...], seen: Callable[..., Seen]) -> None:
    """Every block, precision, architecture and number of rates meets every value of the other three."""
    step = seen("--act", *options)
    assert (step.host, step.step) == ([], [])
    half = {"bf16": "bfloat16", "fp16": "float16", "false": "float32"}[str(options[2])]
    assert half in step.types
    assert step.types <= {half, "float32"}


@pytest.mark.parametrize(
    ("done", "calibrated", "frozen", "options"),
    [
        (0, 1, 2, ("relu", *HYPERPRIOR, *MSE, "--qat_act_observer", "minmax")),
        (2, 1, 3, ("gate_mlp", *MEANS, *MSE, "--qat_exclude_entropy", "false")),
        (2, 1, 2, ("gate", *MSE_RATES, "--qat_a16", "g_s.*")),
        (2, 1, 2, ("gdn", *HYPERPRIOR, *MSE_RATES, "--qat_w_per_channel", "false", *BF16, "--amp", "true")),
    ],
    ids=["calibration", "fixed scale", "eval ready", "eval ready, bf16"],
)
def test_a_step_of_qat_waits_for_nothing(
    done: int, calibrated: int, frozen: int, options: tuple[object, ...], seen: Callable[..., Seen]
) -> None:
    phases = ("--qat_calib_steps", calibrated, "--qat_freeze_after", frozen)
    step = seen("--act", *options, "--qat", "true", "--qat_scope", "all", *phases, done=done)
    assert step.host == []
    assert step.step == []
