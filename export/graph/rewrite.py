"""Exact rewrites of a transform's layers to forms that chips and their compilers support.

A rewrite computes the same as the layer that it replaces, up to float32 rounding and, with fake quantization, to the
same integers. Rewrites change torch modules, so that ONNX and LiteRT get the same graph.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from codec.blocks.gdnish import ChannelConv, banded
from codec.compressai import GDN
from codec.quantization.layers import QuantizedLayer, quantize_layer
from codec.quantization.pairs import QuantizedPair
from codec.quantization.quantizers import ActivationQuantizer, WeightQuantizer, Widened

Deconv = Literal["transpose", "depth_to_space", "concat"]

RECTIFIERS = (nn.ReLU, nn.ReLU6, torch.relu, F.relu, F.relu6, "relu")
NARROW = 4
"""With up to so many output channels, `concat` makes one convolution for both row phases, which reads its input once.
The channels are padded to this number: 16 columns fill a register of x86, 12 do not (the decoder's last layer in ONNX
Runtime, int8, 768x512, one thread: two convolutions 71 ms, one 37 ms, padded 16 ms)."""


def rewrite(transform: nn.Module, deconv: Deconv) -> fx.GraphModule:
    """A copy of g_a or g_s in eval mode, in which every layer with an exact rewrite is rewritten.

    Args:
        transform: a sequence of layers, [B, C, H, W] to [B, C', H', W'], or a graph from
            `codec.quantization.freeze.frozen`.
        deconv: the form of a transposed convolution 5x5 with stride 2: `transpose` keeps it; `depth_to_space` is one
            3x3 convolution and a DepthToSpace; `concat` is two 3x3 convolutions, one for even and one for odd rows,
            whose outputs are interleaved by reshapes and a concatenation (the form for Ethos-U).
    """
    module = copy.deepcopy(transform).eval().requires_grad_(False)
    if not isinstance(module, fx.GraphModule):
        module = fx.GraphModule(module, _LayersOnly().trace(module))
    for each in module.modules():
        if isinstance(each, QuantizedLayer | QuantizedPair):
            each.compute_in_float()
    for name, layer in list(module.named_modules()):
        for kind, replacement in REPLACEMENTS.items():
            if isinstance(layer, kind):
                module.set_submodule(name, replacement(layer))
    if deconv != "transpose":
        for node in list(module.graph.nodes):
            if node.op == "call_module" and is_doubling(layer := module.get_submodule(node.target)):
                _rearrange_late(module, node, SUB_PIXEL[deconv](layer))
    module.graph.lint()
    module.recompile()
    return module


class _LayersOnly(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def is_doubling(layer: nn.Module) -> bool:
    """Whether this is the decoder's transposed convolution, which doubles height and width."""
    return (
        isinstance(layer, nn.ConvTranspose2d)
        and layer.kernel_size == (5, 5)
        and layer.stride == (2, 2)
        and layer.padding == (2, 2)
        and layer.output_padding == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def phase_kernels(weight: Tensor) -> Tensor:
    """Four 3x3 kernels, whose interleaved outputs are the output of the transposed convolution.

    out[2i + r] = sum over j of w[r + 2 - 2(j - i)] x[j], for rows and columns: an even row uses the taps 4, 2, 0 for
    x[i-1], x[i], x[i+1], an odd row the taps 3 and 1 for x[i] and x[i+1]; the tap outside the kernel is zero.

    Args:
        weight: weight of the transposed convolution, [Cin, Cout, 5, 5].

    Returns:
        [2, 2, Cout, Cin, 3, 3], by output row and column phase.
    """
    taps = F.pad(weight.transpose(0, 1), (0, 1, 0, 1))  # tap 5 is zero
    by_phase = torch.tensor([[4, 2, 0], [5, 3, 1]], device=weight.device)
    rows = taps[:, :, by_phase]  # [Cout, Cin, 2, 3, 6]
    return rows[..., by_phase].permute(2, 4, 0, 1, 3, 5)


class DepthToSpaceDeconv(nn.Module):
    """[B, Cin, H, W] to [B, Cout, 2H, 2W]: a 3x3 convolution to 4*Cout channels, then PixelShuffle."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        kernels = phase_kernels(parameter(layer, "weight")).permute(2, 0, 1, 3, 4, 5)  # PixelShuffle: phases innermost
        origin = torch.arange(layer.out_channels).repeat_interleave(4)
        self.convs = nn.ModuleList([_conv3x3(layer, kernels.flatten(0, 2), origin)])
        self.rearrange = nn.PixelShuffle(2)


class ConcatDeconv(nn.Module):
    """[B, Cin, H, W] to [B, Cout, 2H, 2W]: a 3x3 convolution to 2*Cout channels for each row phase.

    In channels-last order, a reshape interleaves the columns, and a concatenation of complete rows the rows.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        kernels = phase_kernels(parameter(layer, "weight"))
        channels = layer.out_channels
        padded = max(channels, NARROW)
        if channels > NARROW:
            origin = torch.arange(channels).repeat(2)
            self.convs = nn.ModuleList(_conv3x3(layer, rows.flatten(0, 1), origin) for rows in kernels)
        else:
            kernels = F.pad(kernels, (0, 0, 0, 0, 0, 0, 0, padded - channels))
            origin = torch.arange(padded).clamp(max=channels - 1).repeat(4)
            self.convs = nn.ModuleList([_conv3x3(layer, kernels.flatten(0, 2), origin)])
        self.rearrange = InterleaveRows(channels, padded)


class InterleaveRows(nn.Module):
    """Interleaves the outputs of `ConcatDeconv`'s convolutions: [B, 2*padded, H, W] per row phase to [B, C, 2H, 2W].

    Both phases may be in one tensor, the even rows first.
    """

    def __init__(self, channels: int, padded: int) -> None:
        super().__init__()
        self.channels, self.padded = channels, padded

    def forward(self, *phases: Tensor) -> Tensor:
        rows = [phase.permute(0, 2, 3, 1) for phase in phases]
        if len(rows) == 1:
            rows = [rows[0][..., : 2 * self.padded], rows[0][..., 2 * self.padded :]]
        batch, height, width, _ = rows[0].shape
        both = torch.cat([row.reshape(batch, height, 1, width * 2 * self.padded) for row in rows], 2)
        picture = both.reshape(batch, 2 * height, 2 * width, self.padded)
        if self.padded > self.channels:
            picture = picture[..., : self.channels]
        return picture.permute(0, 3, 1, 2)


SUB_PIXEL: dict[Deconv, type[DepthToSpaceDeconv] | type[ConcatDeconv]] = {
    "depth_to_space": DepthToSpaceDeconv,
    "concat": ConcatDeconv,
}


def _rearrange_late(module: fx.GraphModule, node: fx.Node, new: DepthToSpaceDeconv | ConcatDeconv) -> None:
    """Replaces the node by the convolutions, and rearranges their outputs after the following rectifier and quantizer.

    Elementwise operations give the same result before the rearrangement, and a runtime can fuse them there. The
    quantizer is called again after it, where it changes no value, because a runtime stores that tensor too.
    """
    name = str(node.target)
    module.set_submodule(name, new)
    chain = list(_pointwise_after(module, node))
    last = chain[-1] if chain else node
    with module.graph.inserting_after(last):
        whole = module.graph.call_module(f"{name}.rearrange")
        if chain and _kind(module, last) is ActivationQuantizer:
            stored = module.graph.node_copy(last)
            last.replace_all_uses_with(stored)
            stored.replace_input_with(stored.all_input_nodes[0], whole)
            whole.append(stored)
        else:
            last.replace_all_uses_with(whole)
    branches = []
    with module.graph.inserting_before(whole):
        for i in range(len(new.convs)):
            value = module.graph.call_module(f"{name}.convs.{i}", node.args)
            for step in chain:
                copied = module.graph.node_copy(step)
                copied.replace_input_with(step.all_input_nodes[0], value)
                value = copied
            branches.append(value)
    whole.args = tuple(branches)
    for old in (*reversed(chain), node):
        module.graph.erase_node(old)


def _pointwise_after(module: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """The rectifier, if it is the node's only reader, and the quantizers after it."""
    kinds: tuple[Any, ...] = (*RECTIFIERS, Widened, ActivationQuantizer)
    while len(node.users) == 1:
        (node,) = node.users
        if _kind(module, node) not in kinds:
            return
        yield node
        kinds = (Widened, ActivationQuantizer) if _kind(module, node) in RECTIFIERS else (ActivationQuantizer,)


def _kind(module: fx.GraphModule, node: fx.Node) -> Any:
    """The class of a module, a function, or the name of a method."""
    return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


class ConstantGDN(nn.Module):
    """GDN and IGDN with constant gamma and beta: x / sqrt(beta + gamma x^2), or x * sqrt(...) for IGDN.

    Training keeps gamma and beta positive by a reparametrization (maximum, square, difference), computed once here.
    """

    def __init__(self, layer: GDN) -> None:
        super().__init__()
        gamma = layer.gamma_reparam(layer.gamma)
        self.norm = nn.Conv2d(gamma.shape[1], gamma.shape[0], 1)
        self.norm.weight = constant(gamma[:, :, None, None])
        self.norm.bias = constant(layer.beta_reparam(layer.beta))
        self.inverse = layer.inverse

    def forward(self, x: Tensor) -> Tensor:
        root = torch.sqrt(self.norm(x * x))
        return x * root if self.inverse else x / root


def banded_conv(layer: ChannelConv) -> nn.Conv2d:
    """ECA's 3-tap convolution across channels as a 1x1 convolution with the banded matrix as a constant."""
    conv = nn.Conv2d(layer.channels, layer.channels, 1, bias=False)
    conv.weight = constant(banded(parameter(layer, "weight").flatten(), layer.channels))
    quantize_alike(layer, conv, torch.zeros(layer.channels, dtype=torch.long))
    return conv


class ClippedHardsigmoid(nn.Module):
    """torch's hard sigmoid, clamp(x/6 + 1/2, 0, 1), as Mul, Add and Clip: every chip has these."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (1 / 6) + 0.5).clamp(0, 1)


REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    GDN: ConstantGDN,
    ChannelConv: banded_conv,
    nn.Hardsigmoid: lambda _: ClippedHardsigmoid(),
}


def _conv3x3(layer: nn.ConvTranspose2d, weight: Tensor, origin: Tensor) -> nn.Conv2d:
    """A 3x3 convolution with these kernels; `origin` gives the layer's output channel for each of its channels."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    conv.weight, conv.bias = constant(weight), constant(parameter(layer, "bias")[origin])
    quantize_alike(layer, conv, origin)
    return conv


def quantize_alike(layer: nn.Module, conv: nn.Conv2d, origin: Tensor) -> None:
    """Gives a convolution the scales of the layer that it replaces, if that layer is quantized.

    Args:
        origin: the layer's output channel for each output channel of the convolution.
    """
    if isinstance(layer, QuantizedLayer):
        old = layer.weight_quantizer
        quantize_layer(conv, old.switches, per_channel=old.axis is not None)
        new = conv.weight_quantizer
        assert isinstance(new, WeightQuantizer)
        new.scale.copy_(old.scale if old.axis is None else old.scale[origin])
        new.frozen = old.frozen


def parameter(layer: nn.Module, name: str) -> Tensor:
    """A layer's own parameter. Reading it as an attribute may apply fake quantization; this does not."""
    if isinstance(layer, QuantizedLayer):
        layer.fold()
    value = layer._parameters[name]
    assert value is not None
    return value


def constant(value: Tensor) -> nn.Parameter:
    """A parameter that no training changes."""
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=False)
