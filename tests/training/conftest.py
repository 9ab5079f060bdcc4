"""Runs that tests of training share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from programs import TINY, into, train


@pytest.fixture(scope="module")
def here(coco224: Path) -> Callable[..., int]:
    """here(folder, *options): a tiny run of the embedded photographs."""
    return lambda folder, *options: train("--coco_dir", coco224, *TINY, *into(folder), *options)
