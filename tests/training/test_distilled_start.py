"""A run with a distilled start: from a trained GDN codec, once, the same on any number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from programs import TINY, distance, into, run_ranks, same, train, weights
from torch import nn

from codec.errors import InputError
from training import distill
from training.fitted import FOLDER
from training.options import parse
from training.preempt import Preempted
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


def test_a_stopped_start_is_continued_by_the_same_command_alone(
    coco224: Path, gdn_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the undisturbed start; a run with another option fits its own blocks."""
    calls = 0

    def learn(block: nn.Module, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Preempted
        return learned(block, *given)

    def distilled(folder: str, *more: object) -> int:
        return train(*words(coco224, gdn_codec, tmp_path / folder, "--distill_steps", 2, "--max_steps", 1, *more))

    learned, stop_at = distill._learn, 0
    monkeypatch.setattr(distill, "_learn", learn)
    assert distilled("whole") == 0
    calls, stop_at = 0, 5
    assert distilled("stopped") == 75
    assert len(list((tmp_path / "stopped" / FOLDER).iterdir())) == 4
    calls, stop_at = 0, 1
    assert distilled("stopped", "--batch_size", 4) == 75
    calls, stop_at = 0, 0
    assert distilled("stopped") == 0
    assert calls == 2
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / FOLDER).exists()


def test_random_weights_have_no_map_to_learn(coco224: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learns from a trained GDN"):
        train("--coco_dir", coco224, *TINY, *into(tmp_path), "--act", "gate", "--distill_steps", 5)
