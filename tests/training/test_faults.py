"""NaN, Inf and huge values: the step is skipped, the module and the pictures are named, and patience ends."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs import rows, same, states, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.bottleneck import noise_keys
from codec.network.codec import Codec
from training.faults import Watch, guilty_module

pytestmark = pytest.mark.slow


def saved(folder: Path, step: int) -> list[dict[str, Tensor]]:
    state = folder / "state" / f"step-{step:08d}"
    return [load_file(state / name) for name in ("model.safetensors", "optimizer.safetensors")]


def test_a_faulty_step_is_skipped_and_its_module_and_pictures_are_named(
    poisoned: Callable[..., int], coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--poisoned_first", 2, "--poisoned_last", 2) == 0
    folder = tmp_path / "run"
    before, faulty, after = (saved(folder, step) for step in (1, 2, 3))
    assert all(map(same, before, faulty))
    assert not any(map(same, faulty, after))

    (row,) = rows(folder, "fault")
    assert (row["step"], row["rank"], row["module"]) == (2, 0, "g_a.3 (Poisoned), forward")
    sources = json.loads((coco224 / "manifest.json").read_text())["licences"].keys()
    assert len(row["files"]) == 8
    assert set(row["files"]) <= sources
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "step 2 skipped" in line]
    assert "step 2 skipped: rank 0 had NaN, Inf or a huge value in g_a.3 (Poisoned), forward" in line
    assert line.endswith("pictures: " + ", ".join(row["files"]))


def test_faults_in_a_row_end_the_run_with_advice_and_the_last_good_weights(
    poisoned: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--poisoned_first", 2, "--overflow_patience", 2, "--max_steps", 9) == 3
    folder = tmp_path / "run"
    assert [state.name[-1] for state in states(folder)] == ["1", "2", "3"]
    assert all(map(same, saved(folder, 1), saved(folder, 3)))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 2 faulty steps in a row (--overflow_patience)")
    assert all(option in error for option in ("--lr", "--local_fp32", "--max_grad_norm", "--amp false"))


def test_patience_survives_a_resume(
    poisoned: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--max_steps", 1, "--overflow_patience", 2) == 0
    assert "warning: the last step was skipped" in capsys.readouterr().err
    assert poisoned("--max_steps", 9, "--overflow_patience", 2) == 3
    assert len(rows(tmp_path / "run", "fault")) == 2


def test_a_value_over_the_tolerance_is_a_fault(
    poisoned: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poisoned("--poisoned_last", 0, "--overflow_tol", 10, "--overflow_patience", 1) == 3
    assert rows(tmp_path / "run", "fault")[0]["module"] == "the loss"


def test_overflow_check_false_lets_it_through(poisoned: Callable[..., int], tmp_path: Path) -> None:
    assert poisoned("--overflow_check", "false", "--poisoned_first", 3, "--train_scope", "replaced") == 0
    assert rows(tmp_path / "run", "fault") == []
    assert weights(tmp_path / "run")["g_a.0.weight"].isnan().all()


def test_a_run_that_diverged_keeps_the_best_checkpoints_it_had(poisoned: Callable[..., int], tmp_path: Path) -> None:
    words = ["--overflow_check", "false", "--poisoned_first", 2, "--train_scope", "replaced", "--batch_size", 54]
    assert poisoned(*words, "--eval_every", 1) == 0
    from codec.checkpoint import load_codec

    for name in ("best_psnr", "best_msssim", "best_rd"):
        codec, description = load_codec(tmp_path / "run" / f"{name}.safetensors")
        assert description.step == 1
        assert all(tensor.isfinite().all() for tensor in codec.parameters())


def test_an_entropy_model_that_diverged_unchecked_ends_the_run_in_one_line(poisoned: Callable[..., int]) -> None:
    with pytest.raises(InputError, match=re.escape("not finite")):
        poisoned("--overflow_check", "false", "--poisoned_first", 2, "--loss_type", "rd", "--input_size", 176)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -2e4, 2e4])
def test_the_watch_sees_what_is_not_a_sane_number(value: float) -> None:
    cpu = torch.device("cpu")
    watch = Watch(1e4, cpu, enabled=True)
    sane = torch.tensor([9e3, -9e3, 0])
    watch.see(sane)
    assert not watch.faulty()
    watch.see(torch.tensor([0.0, value]))
    watch.see(sane)
    assert watch.faulty()
    watch.reset()
    assert not watch.faulty()

    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.tensor([0.0, value])
    watch.see_gradients(parameters, forgive_overflow=False)
    assert watch.faulty()

    off = Watch(1e4, cpu, enabled=False)
    off.see(torch.tensor([value]))
    off.see_gradients(parameters, forgive_overflow=False)
    assert not off.faulty()


def test_an_overflow_under_a_loss_scaler_is_the_scaler_s_business() -> None:
    watch = Watch(1e4, torch.device("cpu"), enabled=True)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.0, float("inf")])
    watch.see_gradients([parameter], forgive_overflow=True)
    assert not watch.faulty()


class BadGradient(torch.autograd.Function):
    """The identity whose gradient is Inf."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class BadBackward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BadGradient.apply(x)


def test_the_guilty_module_is_named_forward_and_backward(picture: Tensor) -> None:
    def objective(codec: Codec) -> Tensor:
        out = codec(picture[..., :64, :64], noise_keys(0, 0, torch.arange(1)))
        return (out["x_hat"] - picture[..., :64, :64]).square().mean()

    def guilty(codec: Codec) -> str:
        return guilty_module(copy.deepcopy(codec), objective, 1e4)

    codec = new_codec(Architecture(8, 12, g_a=BlockChoice("relu"), g_s=BlockChoice("relu")))
    assert guilty(codec) == ""
    codec.g_a[3] = BadBackward()
    assert guilty(codec) == "g_a.3 (BadBackward), backward"
    codec.g_s[2].weight.data[0, 0, 0, 0] = float("nan")
    assert guilty(codec) == "g_s.2 (ConvTranspose2d), forward"
    assert guilty_module(new_codec(Architecture(8, 12)), lambda codec: objective(codec) * 1e9, 1e4) == "the loss"
