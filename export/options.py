"""Options that the export's commands share: one wording, one rule."""

from typing import Any

from codec.cli import option
from codec.description.architecture import STRIDE


def input_size() -> Any:
    """Side of the pictures."""
    rule = (lambda n: n > 0 and n % STRIDE == 0, f"must be a multiple of {STRIDE}")
    return option(224, f"side of x, a multiple of {STRIDE}", rule=rule)


def calib_dir() -> Any:
    """Photographs for post-training quantization."""
    what = "photographs to calibrate int8 on, for transforms trained without it"
    return option(None, what, metavar="DIR", shown="none")


def replace_parts() -> Any:
    """For checkpoints of CompressAI."""
    what = "transforms whose GDN is ReLU, for a checkpoint without metadata"
    return option(None, what, shown="as its weights say")


def plugin() -> Any:
    """Blocks of a user's own."""
    return option(None, "Python file of the blocks that the checkpoint uses", metavar="FILE", shown="none")
