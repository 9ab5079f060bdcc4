"""`--compile`: the same training and evaluation, one graph each, and checkpoints that know nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from captured import capturing
from codecs_for_export import make
from programs import ROUNDING, TINY, distance, into, rows, run_ranks, train, weights
from safetensors.torch import load_file
from torch import Tensor

from codec.description.architecture import Quantization
from codec.quantization.calibrate import calibrate
from training.options import parse
from training.run import Run
from training.setup import set_up

pytestmark = pytest.mark.slow

EVALUATED = ("psnr", "ms_ssim", "l1", "bpp_estimated")


def graphs() -> int:
    """How many were compiled so far."""
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


def evaluations_agree(one: Path, other: Path, tolerance: float, after: int = 0) -> bool:
    """Whether two runs evaluated at the same steps, those after one alone, to the same figures."""
    ours, theirs = (
        [[row["step"], *(row[name] for name in EVALUATED)] for row in rows(folder, "validation") if row["step"] > after]
        for folder in (one, other)
    )
    assert ours
    return ours == [pytest.approx(row, rel=tolerance) for row in theirs]


def state(folder: Path, step: int) -> Path:
    return folder / "state" / f"step-{step:08d}"


def of_step(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(state(folder, step) / "model.safetensors")


@pytest.fixture
def captured() -> Iterator[None]:
    """Graphs are captured and run operation by operation: a C++ compiler would take minutes for them."""
    with capturing():
        yield


@pytest.mark.usefixtures("captured")
def test_a_compiled_run_trains_what_the_eager_run_trains_in_one_graph_and_resumes_eagerly(
    coco224: Path, tmp_path: Path
) -> None:
    """Of three evaluations each ends with a batch of one picture; the pictures of training are smaller ones."""
    words = ["--coco_dir", coco224, *TINY, "--act", "relu", "--replace_parts", "all", "--train_scope", "all"]
    words += ["--batch_size", 3, "--grad_accum", 3, "--eval_every", 1, "--recon_every", 1, "--arch", "mbt2018_mean"]
    before = graphs()
    # 13 steps are more than two epochs: the last, short batch is dropped, or it would be a second shape.
    assert train(*words, *into(tmp_path / "compiled"), "--compile", "true", "--max_steps", 13) == 0
    assert graphs() - before == 3  # training, evaluation and the loss
    assert train(*words, *into(tmp_path / "eager"), "--max_steps", 13) == 0
    assert distance(weights(tmp_path / "eager"), weights(tmp_path / "compiled")) < 1e-4
    assert [row["step"] for row in rows(tmp_path / "compiled", "validation")] == [6, 12, 13]
    assert evaluations_agree(tmp_path / "compiled", tmp_path / "eager", 1e-4)
    assert train(*words, *into(tmp_path / "compiled"), "--compile", "false", "--max_steps", 14) == 0
    assert [row["step"] for row in rows(tmp_path / "compiled", "train")] == list(range(1, 15))


@pytest.mark.usefixtures("captured")
def test_each_phase_of_qat_is_one_more_graph_and_trains_what_the_eager_run_trains(
    coco224: Path, tmp_path: Path
) -> None:
    """Two evaluations in each phase, of a decoder that is quantized too."""
    qat = ["--act", "relu", "--replace_parts", "all", "--qat", "true", "--qat_scope", "all"]
    words = ["--coco_dir", coco224, *TINY, *qat, "--qat_calib_steps", 2, "--qat_freeze_after", 4, "--max_steps", 6]
    words += ["--batch_size", 54, "--eval_every", 1, "--checkpoint_every", 2, "--keep_checkpoints", 9]
    compiled, eager, later = (tmp_path / name for name in ("compiled", "eager", "later"))
    before = graphs()
    assert train(*words, *into(compiled), "--compile", "true") == 0
    assert graphs() - before == 7  # three phases of training, three of evaluation, and the loss
    assert train(*words, *into(eager)) == 0
    assert distance(of_step(eager, 2), of_step(compiled, 2)) < ROUNDING
    # From the same weights, for a last bit may take a weight to another grid point (test_qat.py).
    assert train(*words, *into(later), "--resume", state(compiled, 2)) == 0
    assert distance(of_step(later, 6), of_step(compiled, 6)) < ROUNDING
    assert evaluations_agree(compiled, later, 1e-4, after=2)


def test_compiled_kernels_quantize_as_the_eager_encoder_does(picture: Tensor) -> None:
    """Values and gradients in training, and a runtime's integers in evaluation, which give symbols."""
    x = picture[..., :64, :64]
    codec = calibrate(make("relu"), [x], Quantization("encoder")).requires_grad_()
    compiled = torch.compile(codec.g_a)
    codec.train()
    outputs, gradients = [], []
    for g_a in (codec.g_a, compiled):
        codec.zero_grad()
        y = g_a(x)
        y.square().mean().backward()
        outputs.append(y.detach())
        gradients.append({name: p.grad.clone() for name, p in codec.g_a.named_parameters()})
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    assert distance(*gradients) < 1e-4
    codec.eval()
    with torch.inference_mode():
        assert (codec.g_a(x) == compiled(x)).float().mean() > 0.999


def test_two_compiled_ranks_train_what_one_eager_process_trains(coco224: Path, tmp_path: Path) -> None:
    """In compiled kernels too."""
    words = ["--coco_dir", coco224, *TINY, "--act", "relu", "--replace_parts", "all", "--train_scope", "all"]
    words += ["--eval_every", 1, "--max_steps", 10]
    two = [*into(tmp_path / "two"), "--batch_size", 3, "--compile", "true"]
    done = run_ranks(Path(__file__).with_name("captured.py"), *words, *two, TORCH_LOGS="recompiles")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Recompiling function") == 2  # each rank its evaluation, after its training
    assert train(*words, *into(tmp_path / "one"), "--batch_size", 6) == 0
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4
    assert evaluations_agree(tmp_path / "two", tmp_path / "one", 1e-4)


def test_the_compiled_model_gives_the_eager_model_s_output_to_the_precision_s_tolerance(
    coco224: Path, tmp_path: Path
) -> None:
    """In training bf16 and channels_last, from the same weights; in evaluation FP32."""

    def outputs(compiled: str) -> tuple[Run, dict[str, Tensor], dict[str, Tensor]]:
        words = [*TINY, *into(tmp_path), "--amp", "true", "--channels_last", "true", "--compile", compiled]
        words += ["--coco_dir", str(coco224), "--act", "gdnish", "--replace_parts", "all"]
        run = set_up(parse(words))
        batch = next(run.micro_batches)
        x = run.to_pictures(batch.images)
        assert x.is_contiguous(memory_format=torch.channels_last)
        with run.autocast():
            trained = run.model(x, batch.keys, False)
        with torch.inference_mode():
            evaluated = run.shipped()(x)
        both = ({"x_hat": out["x_hat"].detach(), "y": out["likelihoods"]["y"].detach()} for out in (trained, evaluated))
        return run, *both

    run, trained, evaluated = outputs("true")
    _, trained_eagerly, evaluated_eagerly = outputs("false")
    assert trained["x_hat"].dtype == torch.bfloat16
    assert run.codec.g_a[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert distance(trained, trained_eagerly) < 2**-8  # bf16 keeps eight bits
    assert evaluated["x_hat"].dtype == torch.float32
    assert distance(evaluated, evaluated_eagerly) < 1e-5
