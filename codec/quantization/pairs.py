"""Sums and products of two quantized tensors; in evaluation they use ONNX Runtime's arithmetic (as `layers` does).

One pair of values in 10^5 lies so near a half that the error of float32 decides its rounding, and one such pair may
fill the flat parts of a picture. The products here are the runtime's on every machine. The sums are the runtime's on
x86; on ARM it adds in fixed point, which this code does not reproduce.
"""

import operator

import torch
from torch import Tensor, nn

from codec.quantization.quantizers import Quantizer, Switches, Wiring, round_ste


class QuantizedPair(nn.Module):
    """An operation on two quantized tensors whose result is quantized too.

    Both are [B, C, H, W], or one of them is [B, C, 1, 1].

    Attributes:
        wiring: the quantizers of the two tensors and of the result.
    """

    def __init__(self, switches: Switches, wiring: Wiring) -> None:
        super().__init__()
        self.switches, self.wiring = switches, wiring
        self.in_float = False

    @property
    def operands(self) -> tuple[Quantizer, ...]:
        """The quantizers of the two tensors."""
        return self.wiring.inputs

    @property
    def result(self) -> Quantizer:
        """The quantizer of the result."""
        assert self.wiring.output is not None
        return self.wiring.output

    @property
    def in_integers(self) -> bool:
        """Whether it computes with a runtime's integers: in evaluation, if all three tensors have 8 bits."""
        on = self.switches.quantize and self.switches.in_eval and not (self.training or self.in_float)
        return on and all(each.bits == 8 for each in (*self.operands, self.result))

    def compute_in_float(self) -> None:
        """Makes it an ordinary sum or product, which an exporter can trace."""
        self.in_float = True


class QuantizedProduct(QuantizedPair):
    """a * b."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.in_integers:
            return a * b
        unit, result = self.operands[0].scale * self.operands[1].scale, self.result
        product = round_ste((a * b).div_(unit))
        stored = round_ste(product.mul_(unit / result.scale).add_(result.zero_point))
        return stored.sub_(result.zero_point).mul_(result.scale)


class QuantizedSum(QuantizedPair):
    """a + b."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.in_integers or a.shape != b.shape:
            return a + b
        (first, second), result = self.operands, self.result
        ratios = first.scale / result.scale, second.scale / result.scale
        offset = result.zero_point - fused(ratios[0], first.zero_point, ratios[1] * second.zero_point)
        inner = fused(second.integers(b).add_(second.zero_point), ratios[1], offset)
        stored = round_ste(fused(first.integers(a).add_(first.zero_point), ratios[0], inner))
        return stored.sub_(result.zero_point).mul_(result.scale)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 values, rounded once, as a fused multiply-add does: the product is exact in float64."""
    return a.double().mul_(b).add_(c).float()


PAIRS: dict[object, type[QuantizedPair]] = {
    **dict.fromkeys((operator.mul, torch.mul, "mul"), QuantizedProduct),
    **dict.fromkeys((operator.add, torch.add, "add"), QuantizedSum),
}
"""The class for each function, or name of a method, in a traced graph."""
