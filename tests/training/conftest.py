"""Runs that tests of training share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from poison import POISONED
from programs import TINY, into, train


@pytest.fixture(scope="module")
def here(coco224: Path) -> Callable[..., int]:
    """here(folder, *options): a tiny run of the embedded photographs."""
    return lambda folder, *options: train("--coco_dir", coco224, *TINY, *into(folder), *options)


@pytest.fixture
def poisoned(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """poisoned(*options): a run of 3 steps into tmp_path/run with a block of the user's that gives NaN."""
    plugin = tmp_path / "poison.py"
    plugin.write_text(POISONED)
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "run"), "--plugin", plugin, "--act", "poisoned"]
    words += ["--max_steps", 3, "--checkpoint_every", 1, "--keep_checkpoints", 9]
    return lambda *options: train(*words, *options)
