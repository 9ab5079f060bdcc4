"""Counts what would make the host wait for a GPU."""

from typing import Any

import pytest
from torch import Tensor

from benchmarks.gpu.standins import HostReads


class Reads(HostReads):
    """Inside this context, `found` gets the name of each operator that would make the host wait for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        tolist = Tensor.tolist

        def listed(tensor: Tensor) -> Any:  # no operator on a CPU
            self.read("tolist")
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", listed)

    def read(self, name: str) -> None:
        """Keeps the name."""
        self.found.append(name)
