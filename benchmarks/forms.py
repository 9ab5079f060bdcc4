"""`python -m benchmarks.forms`: the codec's convolutions as torch has them and as 3x3, layer by layer.

A 5x5 of stride 2 is a space-to-depth and a 3x3, a transposed one a 3x3 and a depth-to-space. The 3x3's weight is the
5x5's, rearranged in every step, so that parameters and checkpoints stay. It holds a 6x6: 36/25 of the multiplications.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, alternate, publish
from benchmarks.step import BATCH, device
from codec.checkpoint.zoo import zoo_widths
from codec.description.architecture import Architecture
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from training.deconvolution import set_biases_apart
from training.memory import keep_freed_memory

QUALITY, SIDE = 3, 224
ROUNDS = 15
STOCK, REARRANGED = "stock", "rearranged"
MOVES = 1.05  # below it the floor is the same: 0.95 of it counts
TOLERANCE = 2**-7  # of a norm: bf16 has eight bits

Layer = nn.Conv2d | nn.ConvTranspose2d


class SpaceToDepth(nn.Module):
    """A `Conv2d` of 5x5, stride 2 and padding 2 as a space-to-depth and a 3x3, on the same parameters."""

    def __init__(self, stock: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = stock.weight, stock.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pixel_unshuffle(x, 2), in_blocks(self.weight), self.bias, padding=1)


class DepthToSpace(nn.Module):
    """A `ConvTranspose2d` of 5x5, stride 2, padding 2 and output padding 1 as a 3x3 and a depth-to-space, likewise."""

    def __init__(self, stock: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert stock.bias is not None
        self.weight, self.bias = stock.weight, stock.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = in_blocks(self.weight).flip(2, 3).transpose(0, 1)
        y = F.pixel_shuffle(F.conv2d(x, weight, padding=1), 2)
        return y + self.bias.to(y.dtype)[:, None, None]


def in_blocks(weight: Tensor) -> Tensor:
    """[A, B, 5, 5] to [A, 4 B, 3, 3]: padded to 6x6, whose blocks of 2x2 become channels."""
    return F.pixel_unshuffle(F.pad(weight, (0, 1, 0, 1)), 2)


def rearranged(layer: Layer) -> nn.Module:
    """The other form of a layer."""
    return SpaceToDepth(layer) if isinstance(layer, nn.Conv2d) else DepthToSpace(layer)


def main() -> None:
    """Forward and backward in bf16 and channels_last, compiled, with the trainer's allocator."""
    keep_freed_memory()
    codec = new_codec(Architecture(*zoo_widths(QUALITY))).to(device(), memory_format=torch.channels_last)
    if device().type == "cpu":
        set_biases_apart(codec)
    pictures = torch.rand(BATCH, 3, SIDE, SIDE, device=device()).contiguous(memory_format=torch.channels_last)
    ms = {name: measured(layer, x) for name, layer, x in layers(codec, pictures)}
    publish("forms", rows(ms), {"ms": ms})


def layers(codec: Codec, x: Tensor) -> Iterator[tuple[str, Layer, Tensor]]:
    """Each convolution's name, itself, and what it is given: the pictures, then bf16 that gradients go through."""
    for part in ("g_a", "g_s"):
        for name, layer in getattr(codec, part).named_children():
            if isinstance(layer, Layer):
                yield f"{part}.{name}", layer, x
                with torch.no_grad():
                    x = layer(x.float()).bfloat16()
                x.requires_grad_()


def measured(layer: Layer, x: Tensor) -> dict[str, float]:
    """Median milliseconds of a step of each form, which must agree."""
    torch.compiler.reset()  # or the layer before it would make this one's shapes dynamic
    wanted = [*layer.parameters(), *[x] * x.requires_grad]
    forms = {STOCK: layer, REARRANGED: rearranged(layer)}
    steps = {name: partial(step, torch.compile(form, fullgraph=True), x, wanted) for name, form in forms.items()}
    for stock, other in zip(steps[STOCK](), steps[REARRANGED](), strict=True):
        assert (stock - other).float().norm() <= TOLERANCE * stock.float().norm()
    return {name: 1e3 * seconds for name, seconds in alternate(steps, ROUNDS, warmup=2).items()}


def step(form: Callable[[Tensor], Tensor], x: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """The output, and the wanted gradients of half its square."""
    with torch.autocast(x.device.type, torch.bfloat16):
        y = form(x)
    return y, *torch.autograd.grad(y, wanted, y.detach())


def rows(ms: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Each transform in one form over the other, and both over the faster form of each layer.

    Args:
        ms: milliseconds by layer and form.
    """
    where = f"forward and backward, quality {QUALITY}, batch {BATCH}"
    found = []
    for part, forms in (
        ("g_a", ("5x5 convolutions of stride 2", "space-to-depth and 3x3")),
        ("g_s", ("5x5 transposed convolutions", "3x3 and depth-to-space")),
    ):
        sums = [sum(ms[name][form] for name in ms if name.startswith(part)) for form in (STOCK, REARRANGED)]
        sides = {f"{form}, ms": taken for form, taken in zip(forms, sums, strict=True)}
        found.append(Row(f"{forms[0]} over {forms[1]}, {where}", sums[0] / sums[1], "x", sides=sides))
    sides = {
        "stock, ms": sum(each[STOCK] for each in ms.values()),
        "the faster of each layer, ms": sum(min(each.values()) for each in ms.values()),
    }
    stock, best = sides.values()
    faster = ", ".join(name for name, each in ms.items() if each[REARRANGED] < each[STOCK])
    verdict = "the floor moves" if stock > MOVES * best else "the floor stays where it is"
    note = f"{verdict}; 3x3 is faster in {faster or 'no layer'}"
    found.append(
        Row(
            f"stock convolutions over the faster form of each layer, {where}", stock / best, "x", sides=sides, note=note
        )
    )
    return found


if __name__ == "__main__":
    main()
