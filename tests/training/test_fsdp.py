"""Accelerate's FSDP2 with the settings of fsdp.yaml, on gloo ranks: a sharded codec trains, is saved and resumes."""

import json
import re
from pathlib import Path

import pytest
from programs import FSDP, ROUNDING, TINY, distance, into, launch, rows, states, train, weights
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.slow

HOWS = ("fsdp", "ddp")
STEPS = 8
HALF = 3


def words(coco224: Path, folder: Path, ranks: int, *more: object) -> list[str]:
    """8 steps in FP32 over a global batch of 8, clipped, with an evaluation at the end of each epoch."""
    options = ["--coco_dir", coco224, *TINY, *into(folder), "--batch_size", 8 // ranks, "--max_steps", STEPS]
    options += ["--train_scope", "all", "--replace_parts", "all", "--eval_every", 1, "--channels_last", "false"]
    options += ["--arch", "mbt2018_mean", "--rates", 3, "--lambda_mse", "0.003:0.03"]
    return [str(word) for word in (*options, *more)]


def shard(folder: Path, processes: int, runs: list[tuple[str, list[str]]]) -> str:
    """Runs training commands one after the other, each under "fsdp" or "ddp"; returns what the ranks print."""
    (folder / "runs.json").write_text(json.dumps(runs))
    done = launch("-m", "tests.training.fsdp_over_gloo", folder, config=FSDP, processes=processes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ranks(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of two ranks. GDNishLite has parameters of one row: a rank's shard of them is empty."""
    folder = tmp_path_factory.mktemp("ranks")
    bf16 = ["--amp", "true", "--local_fp32", "entropy", "--max_steps", 2]
    onward = ["--resume", folder / "half" / "state"]
    runs = [
        ("fsdp", words(coco224, folder / "fsdp", 2)),
        ("ddp", words(coco224, folder / "ddp", 2)),
        ("fsdp", words(coco224, folder / "half", 2, "--max_steps", HALF)),
        ("fsdp", words(coco224, folder / "resumed", 2, *onward)),
        ("fsdp", words(coco224, folder / "fsdp-bf16", 2, *bf16)),
        ("ddp", words(coco224, folder / "ddp-bf16", 2, *bf16)),
        *[(how, words(coco224, folder / f"{how}-gdnish", 2, "--act", "gdnish", "--max_steps", 2)) for how in HOWS],
    ]
    said = shard(folder, 2, runs)
    shares = re.findall(r"rank \d of 2 holds (\d+) of (\d+)", said)
    assert len(shares) == 2 * 5
    assert all(0.4 < int(held) / int(everything) < 0.6 for held, everything in shares)
    assert re.search(r"[1-9] are empty", said)
    return folder


@pytest.fixture(scope="module")
def alone(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert train(*words(coco224, folder, 1)) == 0
    return folder


def optimizer(folder: Path) -> dict[str, Tensor]:
    return load_file(states(folder)[-1] / "optimizer.safetensors")


@pytest.mark.parametrize("how", ["fsdp", "ddp", "resumed"])
def test_two_ranks_leave_what_one_process_leaves(how: str, ranks: Path, alone: Path) -> None:
    """Also where a run was saved in the middle, and another went on from there."""
    assert distance(weights(alone), weights(ranks / how)) < ROUNDING
    for name in ("last.safetensors", f"state/step-{STEPS:08d}/optimizer.safetensors"):
        mine, theirs = load_file(alone / name), load_file(ranks / how / name)
        assert {n: (t.dtype, t.shape) for n, t in mine.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}


@pytest.mark.parametrize("how", ["fsdp", "ddp"])
def test_the_losses_of_every_step_agree(how: str, ranks: Path, alone: Path) -> None:
    theirs, ours = rows(ranks / how, "train"), rows(alone, "train")
    assert [row["step"] for row in theirs] == list(range(1, STEPS + 1))
    for name in ("loss", "bpp", "psnr"):
        assert [row[name] for row in theirs] == pytest.approx([row[name] for row in ours], rel=1e-5)


@pytest.mark.parametrize("how", ["fsdp", "ddp"])
def test_evaluations_agree(how: str, ranks: Path, alone: Path) -> None:
    theirs, ours = rows(ranks / how, "validation"), rows(alone, "validation")
    assert [row["step"] for row in theirs] == [6, STEPS]
    for name in ("psnr", "ms_ssim", "l1", "bpp_estimated", "rd"):
        assert [row[name] for row in theirs] == pytest.approx([row[name] for row in ours], rel=1e-5)


def test_resuming_changes_no_bit(ranks: Path) -> None:
    assert distance(weights(ranks / "fsdp"), weights(ranks / "resumed")) == 0
    assert distance(optimizer(ranks / "fsdp"), optimizer(ranks / "resumed")) == 0


def test_a_state_that_fsdp_saved_resumes_in_one_process(
    ranks: Path, alone: Path, coco224: Path, tmp_path: Path
) -> None:
    assert train(*words(coco224, tmp_path, 1, "--resume", ranks / "half" / "state")) == 0
    assert distance(weights(alone), weights(tmp_path)) < ROUNDING


def test_bf16_with_a_region_of_fp32_agrees_with_ddp(ranks: Path) -> None:
    """They round alike, so that they agree as in FP32."""
    assert distance(weights(ranks / "ddp-bf16"), weights(ranks / "fsdp-bf16")) < ROUNDING
    assert distance(weights(ranks / "fsdp"), weights(ranks / "fsdp-bf16")) > ROUNDING


def test_a_block_with_empty_shards_trains_what_ddp_trains(ranks: Path) -> None:
    assert distance(weights(ranks / "ddp-gdnish"), weights(ranks / "fsdp-gdnish")) < ROUNDING


def test_four_ranks_of_which_some_have_empty_shards_train_what_one_process_trains(
    coco224: Path, tmp_path: Path, alone: Path
) -> None:
    said = shard(tmp_path, 4, [("fsdp", words(coco224, tmp_path / "four", 4, "--max_steps", 3, "--eval_every", 0))])
    assert re.search(r"[1-9] are empty", said)
    ours, theirs = rows(alone, "train")[:3], rows(tmp_path / "four", "train")
    for name in ("loss", "bpp", "psnr"):
        assert [row[name] for row in theirs] == pytest.approx([row[name] for row in ours], rel=1e-5)
