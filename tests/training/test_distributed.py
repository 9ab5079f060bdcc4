"""DDP proven: two gloo ranks train what one process trains, and what they share is really shared."""

import json
from pathlib import Path

import pytest
from poison import POISONED
from programs import ROUNDING, TINY, distance, into, rows, run_ranks, same, train, weights
from safetensors.torch import load_file
from torch import Tensor

from codec.errors import InputError

pytestmark = pytest.mark.slow

NORMED = """
from torch import nn
from codec.blocks import register_activation

@register_activation("normed")
class Normed:
    @staticmethod
    def encoder(channels, options):
        return nn.BatchNorm2d(channels)

    decoder = encoder
"""

# Every loss, scope, architecture once. ReLU replaces every GDN that trains: Adam amplifies GDN's tiny gradients.
COMBINATIONS = {
    "recon": ("replaced+entropy", "all", ["--input_size", 176]),
    "rd": ("all", "all", ["--input_size", 176, "--arch", "mbt2018_mean"]),
    "mse": ("replaced", "all", []),
    "mse-hyper": ("replaced+hyper", "encoder", ["--arch", "bmshj2018_hyperprior"]),
}


def combination(name: str, coco224: Path, folder: Path, batch_size: int) -> list[str]:
    """Options of eight steps, the last in a second epoch, over a global batch of 8, with learning rate 1e-4 in FP32."""
    scope, parts, more = COMBINATIONS[name]
    words = ["--coco_dir", coco224, *TINY, *into(folder), "--max_steps", 8, "--batch_size", batch_size, *more]
    words += ["--loss_type", name.split("-")[0], "--train_scope", scope, "--replace_parts", parts]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def ranks(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks left weights and gradients."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {name: combination(name, coco224, folder / name, batch_size=4) for name in COMBINATIONS}
    for loss, size in (("recon", 176), ("mse", 64)):
        words = ["--coco_dir", coco224, *TINY, *into(folder / "unused"), "--batch_size", 2, "--input_size", size]
        words += ["--loss_type", loss, "--train_scope", "all", "--max_grad_norm", 0]
        runs[f"gradients-{loss}"] = [str(word) for word in words]
    (folder / "poison.py").write_text(POISONED)
    for way in ("forward", "backward"):
        words = ["--coco_dir", coco224, *TINY, *into(folder / way), "--batch_size", 4, "--max_steps", 3]
        words += ["--plugin", folder / "poison.py", "--act", "poisoned", "--poisoned_rank", 1]
        words += ["--poisoned_first", 2, "--poisoned_last", 2, "--poisoned_backward", str(way == "backward")]
        runs[way] = [str(word) for word in [*words, "--checkpoint_every", 1, "--keep_checkpoints", 9]]
    (folder / "normed.py").write_text(NORMED)
    words = ["--coco_dir", coco224, *TINY, *into(folder / "normed"), "--batch_size", 4, "--max_steps", 3]
    runs["normed"] = [str(word) for word in [*words, "--plugin", folder / "normed.py", "--act", "normed"]]
    (folder / "runs.json").write_text(json.dumps(runs))
    done = run_ranks(Path(__file__).with_name("two_ranks.py"), folder)
    assert done.returncode == 0, done.stderr
    return folder


def of_rank(folder: Path, rank: int) -> dict[str, Tensor]:
    return load_file(folder / f"rank-{rank}.safetensors")


@pytest.mark.parametrize("name", COMBINATIONS)
def test_two_ranks_train_the_same_codec_as_one_process(name: str, ranks: Path, coco224: Path, tmp_path: Path) -> None:
    assert train(*combination(name, coco224, tmp_path, batch_size=8)) == 0
    assert same(of_rank(ranks / name, 0), of_rank(ranks / name, 1))
    alone, together = weights(tmp_path), weights(ranks / name)
    assert distance(alone, together) < ROUNDING
    figures = [[row["loss"] for row in rows(folder, "train")] for folder in (tmp_path, ranks / name)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def synchronized(a: dict[str, Tensor], b: dict[str, Tensor], mean: dict[str, Tensor]) -> list[str]:
    """The parameters whose gradients on two ranks are one, and the mean of what each rank would have by itself."""
    assert a.keys() == b.keys() == mean.keys()
    return [n for n in a if a[n].equal(b[n]) and distance({n: mean[n]}, {n: a[n]}) < 1e-5]


@pytest.mark.parametrize("loss", ["recon", "mse"])
def test_every_gradient_is_the_mean_over_the_ranks_the_auxiliary_too(loss: str, ranks: Path) -> None:
    def gradients(how: str, rank: int) -> dict[str, Tensor]:
        return load_file(ranks / f"gradients-{loss}" / f"{how}-{rank}.safetensors")

    alone = [gradients("alone", rank) for rank in (0, 1)]
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    assert "entropy_bottleneck.quantiles" in mean
    assert any(name.startswith("g_a") for name in mean)
    assert any(name.startswith("g_s") for name in mean)
    assert "entropy_bottleneck.matrices.0" in mean
    assert synchronized(gradients("together", 0), gradients("together", 1), mean) == list(mean)
    # The same check sees it where gradients are not synchronized, be it of one parameter.
    assert synchronized(*alone, mean) == []


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_fault_on_one_rank_is_skipped_by_all_and_they_stay_equal(way: str, ranks: Path) -> None:
    folder = ranks / way
    assert same(of_rank(folder, 0), of_rank(folder, 1))
    first, second, third = (
        load_file(folder / "state" / f"step-{step:08d}" / "model.safetensors") for step in (1, 2, 3)
    )
    assert same(first, second)
    assert not same(second, third)
    named = [row for row in rows(folder, "fault") if "module" in row and row["rank"] == 1]
    assert [(row["step"], row["module"]) for row in named] == [(2, f"g_a.3 (Poisoned), {way}")]
    assert len(named[0]["files"]) == 4


def test_statistics_of_a_plugin_are_those_of_rank_0_where_they_are_used(ranks: Path) -> None:
    """Between evaluations each rank has its own, of its own pictures."""
    folder = ranks / "normed"
    ours, others = (of_rank(folder, rank) for rank in (0, 1))
    statistics = [name for name in ours if "running" in name]
    assert statistics
    assert all(ours[name].unique().numel() > 1 for name in statistics)
    shipped = [load_file(folder / f"shipped-{rank}.safetensors") for rank in (0, 1)]
    for tensors in (others, *shipped, weights(folder), load_file(folder / "last.safetensors")):
        assert all(tensors[name].equal(ours[name]) for name in statistics)


def test_processes_that_do_not_know_of_each_other_are_refused(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    says = "the launcher started 2 processes but Accelerate sees 1, so they would overwrite each other's files"
    with pytest.raises(InputError, match=f"^{says}"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("configured", "options", "wanted"),
    [("fp16", "--amp true", "--amp_dtype bf16"), ("bf16", "--amp false", "--amp false"), ("fp8", "--amp true", "bf16")],
)
def test_an_accelerate_configuration_of_another_precision_is_refused(
    configured: str, options: str, wanted: str, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", configured)
    with pytest.raises(InputError, match=f"mixed_precision {configured} and the options say .*{wanted}"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path / "run"), *options.split())
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_the_same_precision_is_taken(
    coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train("--coco_dir", coco224, *TINY, *into(tmp_path), "--amp", "true", "--max_steps", 1) == 0
