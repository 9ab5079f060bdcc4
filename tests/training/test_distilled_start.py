"""A run with a distilled start: from a trained GDN codec, once, the same on any number of ranks."""

from pathlib import Path

import pytest
import torch
from programs import TINY, distance, into, run_ranks, train, weights

from codec.errors import InputError
from training.options import parse
from training.setup import set_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gdn_codec(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose GDNs have trained a little."""
    folder = tmp_path_factory.mktemp("gdn")
    words = ["--coco_dir", coco224, *TINY, *into(folder), "--act", "gdn", "--train_scope", "all"]
    assert train(*words, "--max_steps", 6, "--lr", "1e-2") == 0
    return folder / "last.safetensors"


def words(coco224: Path, start: Path, folder: Path, *more: object) -> list[str]:
    """A gate in the place of every GDN of this checkpoint."""
    gate = ["--init_checkpoint", start, "--act", "gate", "--replace_parts", "all", "--train_scope", "all"]
    return [str(word) for word in ("--coco_dir", coco224, *TINY, *into(folder), *gate, *more)]


def test_the_swap_costs_less_after_a_distilled_start(
    coco224: Path, gdn_codec: Path, tmp_path: Path, picture: torch.Tensor
) -> None:
    teacher = set_up(parse(["--coco_dir", str(coco224), *TINY, "--init_checkpoint", str(gdn_codec), "--act", "gdn"]))
    raw = set_up(parse(words(coco224, gdn_codec, tmp_path)))
    run = set_up(parse(words(coco224, gdn_codec, tmp_path, "--distill_steps", 6)))
    assert run.distilled.keys() == {f"{part}.{i}" for part in ("g_a", "g_s") for i in (1, 3, 5)}
    with torch.no_grad():
        target, swapped, distilled = (each.codec.eval()(picture)["x_hat"] for each in (teacher, raw, run))
    assert (distilled - target).square().mean() < (swapped - target).square().mean() / 10


def test_it_happens_once(coco224: Path, gdn_codec: Path, tmp_path: Path) -> None:
    def steps(folder: str, batch_size: int, count: int) -> list[str]:
        batch = ("--distill_steps", 2, "--batch_size", batch_size, "--max_steps", count)
        return words(coco224, gdn_codec, tmp_path / folder, *batch)

    assert train(*steps("whole", 8, 3)) == 0
    assert train(*steps("resumed", 8, 1)) == 0
    assert train(*steps("resumed", 8, 3)) == 0
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == 0
    done = run_ranks("train_accel.py", *steps("ranks", 8, 1), "--resume", "none")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("distilled   each block follows its GDN") == 1


def test_random_weights_have_no_map_to_learn(coco224: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learns from a trained GDN"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path), "--act", "gate", "--distill_steps", 5)
