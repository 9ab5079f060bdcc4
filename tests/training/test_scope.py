"""What is frozen stays as it is, to the bit: no gradient, no optimizer state, no weight decay."""

from pathlib import Path

import pytest
from programs import TINY, into, same, states, train, weights
from safetensors.torch import load_file
from torch import Tensor

from training.options import parse
from training.setup import set_up
from training.state import model_tensors

pytestmark = pytest.mark.slow

ADAMW = ["--optimizer", "adamw", "--weight_decay", "0.5", "--max_steps", "3"]
SCOPES = {
    ("encoder", "replaced"): {"g_a"},
    ("decoder", "replaced"): {"g_s"},
    ("all", "replaced"): {"g_a", "g_s"},
    ("encoder", "replaced+entropy"): {"g_a", "entropy_bottleneck"},
    ("decoder", "replaced+hyper"): {"g_s", "entropy_bottleneck"},
    ("encoder", "all"): {"g_a", "g_s", "entropy_bottleneck"},
}


def before(*words: object) -> dict[str, Tensor]:
    """The first weights of a run."""
    return model_tensors(set_up(parse([str(word) for word in words])).codec)


def optimized(folder: Path) -> set[str]:
    """The parameters for which the optimizer keeps something."""
    return {key.split("/", 1)[1] for key in load_file(states(folder)[-1] / "optimizer.safetensors")}


@pytest.mark.parametrize(("parts", "scope"), SCOPES)
def test_a_scope_trains_its_modules_whole_and_nothing_else(
    parts: str, scope: str, coco224: Path, tmp_path: Path
) -> None:
    words = ["--coco_dir", coco224, *TINY, *ADAMW, *into(tmp_path), "--replace_parts", parts, "--train_scope", scope]
    first = before(*words)
    assert train(*words) == 0
    last = weights(tmp_path)
    trained = {name for name in first if name.split(".")[0] in SCOPES[parts, scope]}
    assert same({n: first[n] for n in first.keys() - trained}, {n: last[n] for n in first.keys() - trained})
    names = {name for name in trained if not name.endswith((".target", "_offset", "pedestal", "bound"))}
    assert names == {name for name in trained if not first[name].equal(last[name])}
    assert optimized(tmp_path) == names


def test_eb_aux_false_leaves_the_quantiles_where_they_are(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, *ADAMW, *into(tmp_path), "--eb_aux", "false"]
    first = before(*words)["entropy_bottleneck.quantiles"]
    assert train(*words) == 0
    assert weights(tmp_path)["entropy_bottleneck.quantiles"].equal(first)
    assert "entropy_bottleneck.matrices.0" in optimized(tmp_path)
    assert "entropy_bottleneck.quantiles" not in optimized(tmp_path)


def test_with_recon_the_entropy_model_learns_and_moves_no_transform(coco224: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", coco224, *TINY, "--loss_type", "recon", "--input_size", 176, "--batch_size", 2]
    words += ["--max_steps", 3, "--replace_parts", "all"]
    for scope in ("replaced", "replaced+entropy"):
        assert train(*words, *into(tmp_path / scope), "--train_scope", scope) == 0
    fixed, learning = weights(tmp_path / "replaced"), weights(tmp_path / "replaced+entropy")
    transforms = [name for name in fixed if name.startswith(("g_a", "g_s"))]
    assert same({name: fixed[name] for name in transforms}, {name: learning[name] for name in transforms})
    assert not fixed["entropy_bottleneck.matrices.0"].equal(learning["entropy_bottleneck.matrices.0"])
