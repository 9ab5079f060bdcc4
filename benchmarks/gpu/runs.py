"""What runs leave, read and compared."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.folder import STATE
from training.record import ROWS, json_lines
from training.state import FILES, newest_whole

_TENSORS = [name for name in FILES if name.endswith(".safetensors")]


def logged(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The rows of this kind in a run's record."""
    return [row for row in json_lines(folder / ROWS) if row["kind"] == kind]


def losses(folder: Path) -> list[float]:
    """The logged losses, by step; those that are not finite are not logged."""
    return [row["loss"] for row in logged(folder) if "loss" in row]


def state(folder: Path) -> dict[str, Tensor]:
    """Weights, ranges and optimizer moments of a run's newest state, by file and name."""
    newest = newest_whole(folder / STATE)
    assert newest is not None, f"the run {folder.name} saved no state"
    return {f"{file}/{name}": tensor for file in _TENSORS for name, tensor in load_file(newest / file).items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of the tensors whose bits differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any tensor: norm of the difference over the norm."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).double().norm() / a[k].double().norm().clamp(min=1e-30)) for k in a)


def largest_change(a: list[float], b: list[float]) -> float:
    """The largest relative difference of two series of losses."""
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))
