"""`train_accel.py`, whose graphs are captured and run operation by operation: a C++ compiler would take minutes."""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from torch._dynamo.backends.debugging import aot_eager

import train_accel
from codec.cli import run


def capturing() -> AbstractContextManager[Any]:
    """In this context torch.compile captures graphs, and generates no code."""
    return patch("torch._inductor.compile_fx.compile_fx", aot_eager)


if __name__ == "__main__":
    with capturing():
        run(train_accel.main)
