"""What every entropy model of y offers: symbols around centres, and their limits in an int8 runtime."""

import torch
from compressai.entropy_models import EntropyModel
from torch import Tensor

INT8 = (-128, 127)
"""The smallest and the largest symbol of 8 bits."""


class LatentModel(EntropyModel):
    """The part of an entropy model of y that quantization, export and files use.

    Attributes:
        for_int8: the codec is fake-quantized in `eval()`: symbols are clamped to 8 bits if `not_int8` is empty.
            `codec.quantization` sets it.
        symbol_limits: the smallest and the largest symbol in `eval()`; None: no limits. It is computed from `for_int8`
            and the tables, and stored because that reads the tables on the host.
    """

    for_int8: bool = False
    symbol_limits: tuple[int, int] | None = None

    def medians(self) -> Tensor:
        """The medians [1, M, 1, 1]; they are subtracted from y before rounding."""
        raise NotImplementedError

    def symbols(self, y: Tensor) -> Tensor:
        """round(y - median) within the limits, [B, M, H, W], as floats."""
        symbols = torch.round(y - self.medians())
        return symbols if self.symbol_limits is None else symbols.clamp(*self.symbol_limits)

    def limit_symbols(self) -> None:
        """Sets `symbol_limits` after a change of `for_int8` or of the tables (a host read)."""
        self.symbol_limits = INT8 if self.for_int8 and not self.not_int8() else None

    def not_int8(self) -> str:
        """Why 8 bits cannot hold the symbols; empty if they can (a host read)."""
        raise NotImplementedError
