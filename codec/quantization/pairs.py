"""Sums and products of two quantized tensors, which in evaluation are ONNX Runtime's own (see `quant_layers`).

One pair of values in 10^5 falls so near a half that float32 decides, but a pair may fill the flat parts of a picture.
These are the runtime's products everywhere, and its sums on x86; on ARM it adds in fixed point, which no other gives.
"""

import operator

import torch
from torch import Tensor, nn

from codec.quantization.quantizers import ActivationQuantizer, Switches, Wiring, whole


class QuantizedPair(nn.Module):
    """Of two quantized tensors [B, C, H, W], one of them may be [B, C, 1, 1], one whose result is quantized too.

    Attributes:
        wiring: the quantizers of the two tensors, and that of the result.
    """

    def __init__(self, switches: Switches, wiring: Wiring) -> None:
        super().__init__()
        self.switches, self.wiring = switches, wiring
        self.in_float = False

    @property
    def operands(self) -> tuple[ActivationQuantizer, ...]:
        """The quantizers of the two tensors."""
        return self.wiring.inputs

    @property
    def result(self) -> ActivationQuantizer:
        """The quantizer of the result."""
        assert self.wiring.output is not None
        return self.wiring.output

    @property
    def in_integers(self) -> bool:
        """Whether it computes in a runtime's integers: in evaluation."""
        return self.switches.quantize and self.switches.in_eval and not (self.training or self.in_float)

    def compute_in_float(self) -> None:
        """Makes it an ordinary sum or product, which an exporter can trace."""
        self.in_float = True


class QuantizedProduct(QuantizedPair):
    """a * b."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.in_integers:
            return a * b
        unit, result = self.operands[0].scale * self.operands[1].scale, self.result
        count = whole((a * b).div_(unit))
        stored = whole(count.mul_(unit / result.scale).add_(result.zero_point))
        return stored.sub_(result.zero_point).mul_(result.scale)


class QuantizedSum(QuantizedPair):
    """a + b."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.in_integers or a.shape != b.shape:
            return a + b
        (first, second), result = self.operands, self.result
        ratios = first.scale / result.scale, second.scale / result.scale
        offset = result.zero_point - fused(ratios[0], first.zero_point, ratios[1] * second.zero_point)
        inner = fused(second.counts(b).add_(second.zero_point), ratios[1], offset)
        stored = whole(fused(first.counts(a).add_(first.zero_point), ratios[0], inner))
        return stored.sub_(result.zero_point).mul_(result.scale)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 values, rounded once: float64 holds what comes before."""
    return a.double().mul_(b).add_(c).float()


PAIRS: dict[object, type[QuantizedPair]] = {
    **dict.fromkeys((operator.mul, torch.mul, "mul"), QuantizedProduct),
    **dict.fromkeys((operator.add, torch.add, "add"), QuantizedSum),
}
"""By the function, or the method's name, that a graph has for it."""
