"""Counts what would make the host wait for a GPU."""

from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Inside this context, `found` gets the name of each operator that would make the host wait for a GPU."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        tolist = Tensor.tolist

        def listed(tensor: Tensor) -> Any:  # no operator on a CPU
            self.found.append("tolist")
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", listed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in self.READS:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
