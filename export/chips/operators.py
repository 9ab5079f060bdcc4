"""Tables of the ONNX operators that NPU families support, for operators in a codec's graphs; as of late 2026.

For every operator a table says that it is supported, that it is supported under a condition (checked on the node's
shapes and attributes), or that it is not, why, and what to do. Its vendor does not mention operators that are missing.

Sources: `ethos-u-vela` 5.2.0, its supported-operators report, and its results on these graphs; the operator tables of
ONNX Runtime's QNN execution provider; RKNNToolKit2_OP_Support-v2.1.0.md of airockchip's rknn-toolkit2, and that toolkit
2.5.0 on these graphs, which decides where the two differ; pulsar2's op_support_list_ax650; ExecuTorch's
nxp/op-support.csv; onnx-tensorrt's operators.md, and TensorRT for RTX 1.7.1 on these graphs; the optimized graphs of
ONNX Runtime 1.32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from export.graph.nodes import Node
from export.graph.rewrite import Deconv


@dataclass(frozen=True)
class Rule:
    """The condition under which a family supports an operator; `reason` and `remedy` apply if it does not hold.

    If the remedy depends on the node, `remedy` is a function of the node.
    """

    holds: Callable[[Node], bool]
    reason: str
    remedy: str | Callable[[Node], str]

    def advice(self, node: Node) -> str:
        return self.remedy if isinstance(self.remedy, str) else self.remedy(node)


def refused(reason: str, remedy: str | Callable[[Node], str]) -> Rule:
    return Rule(lambda node: False, reason, remedy)


@dataclass(frozen=True)
class Family:
    """Chips that share a compiler.

    Attributes:
        deconv: the best form of the transposed convolutions (`python -m export --deconv`).
        int8: it accepts our int8 file; False: its own tool, or export.npu, quantizes the float file.
        rules: rules by operator; None: always supported.
        static: it refuses graphs whose height or width is dynamic.
        wide: rules by operator with activations of 16 bits; for an operator that is not here, its list does not say.
    """

    name: str
    deconv: Deconv
    int8: bool
    rules: Mapping[str, Rule | None] = field(repr=False)
    static: bool = True
    wide: Mapping[str, Rule | None] = field(default_factory=dict, repr=False)


def taken(*operators: str) -> dict[str, Rule | None]:
    return dict.fromkeys(operators)


def is_doubling(node: Node) -> bool:
    """Whether `--deconv` rewrites this transposed convolution: the decoder's own, which doubles height and width."""
    expected = {"kernel_shape": (5, 5), "strides": (2, 2), "pads": (2, 2, 2, 2), "output_padding": (1, 1)}
    plain = set(node.ints("dilations")) <= {1} and node.number("group", 1) == 1
    return plain and all(tuple(node.ints(name)) == values for name, values in expected.items())


def deconv_or_conv(remedy: str) -> Callable[[Node], str]:
    """The remedy for a transposed convolution; `remedy` is for those that the export can rewrite."""
    other = "use a Conv, or 5x5 with stride 2, padding 2 and output_padding 1, which --deconv concat rewrites"
    return lambda node: remedy if is_doubling(node) else other


REPLACE = "train with --act relu_mlp, gate_mlp or another block in its place"
SUB_PIXEL = deconv_or_conv("export with --deconv concat or depth_to_space: exact, and int8 everywhere")
ABS = "write it as a leaky ReLU of slope -1"
CPU = "it stays in float, and so on the CPU"
HOST = "export encoder and decoder: rounding belongs on the host"

GDN_REFUSED = {name: refused("not in its list", REPLACE) for name in ("Sqrt", "Div", "Pow", "Reciprocal")}
MOVES = taken("Concat", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze")
QUANTIZERS = taken("QuantizeLinear", "DequantizeLinear")
COMMON = {
    **taken("Conv", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Mul", "Add", "GlobalAveragePool"),
    **MOVES,
    **QUANTIZERS,
}


def same_padding(node: Node) -> bool:
    """Whether a transposed convolution pads as TFLite's SAME: out = in x stride, an odd pixel at the end."""
    strides, kernel = node.ints("strides"), node.ints("kernel_shape")
    begins = node.ints("pads")[: len(kernel)]
    whole = [
        out == size * stride for out, size, stride in zip(node.outputs[0][2:], node.inputs[0][2:], strides, strict=True)
    ]
    halves = [begin == (k - stride) // 2 for begin, k, stride in zip(begins, kernel, strides, strict=True)]
    return all(whole) and all(halves) and set(strides) <= {1, 2}


def small_output_padding(node: Node) -> bool:
    pads = node.ints("pads")
    return all(extra <= end for extra, end in zip(node.ints("output_padding"), pads[len(pads) // 2 :], strict=False))


def limits(*allowed: tuple[float, float]) -> Callable[[Node], bool]:
    return lambda node: (node.scalar(1, -float("inf")), node.scalar(2, float("inf"))) in allowed


def multiple_of_8(node: Node) -> bool:
    return prod(node.outputs[0]) % 8 == 0


def spatial_mean(node: Node) -> bool:
    return len(node.inputs[0]) == 4 and sorted(axis % 4 for axis in node.ints("axes")) == [2, 3]


def channels_last_and_back(node: Node) -> bool:
    return tuple(node.ints("perm")) in {(0, 2, 3, 1), (0, 3, 1, 2)}


def small_stride(node: Node) -> bool:
    return max(node.ints("strides") or (1,)) <= 3 and prod(node.ints("kernel_shape")) <= 4096


def mode(name: str) -> Callable[[Node], bool]:
    return lambda node: node.text("mode", "DCR") == name


def zero_point_0(node: Node) -> bool:
    return node.scalar(2, 0) == 0 and node.dtype(2) == "int8"


def two_dimensional(node: Node) -> bool:
    return len(node.inputs[0]) == 4


def one_type(node: Node) -> bool:
    return len(node.stored) == 1


ONE_TYPE = Rule(one_type, "8-bit and 16-bit activations in one operator", "leave the tensor beside y in 8 bits")


ETHOS_U = Family(
    "Arm Ethos-U (Vela)",
    "concat",
    True,
    {
        **COMMON,
        **taken("HardSigmoid", "Round", "Max", "Sub"),
        "Conv": Rule(small_stride, "strides above 3 or kernels of more than 4096 taps", "use smaller ones"),
        "ConvTranspose": Rule(
            same_padding,
            "only stride 1 or 2 with SAME padding and out = in x stride",
            deconv_or_conv("export with --deconv concat"),
        ),
        "DepthToSpace": Rule(
            mode("DCR"),
            "LiteRT writes PixelShuffle's order with operators that run on the CPU",
            "export with --deconv concat",
        ),
        "GlobalAveragePool": Rule(
            lambda node: prod(node.inputs[0][2:]) <= 2**24, "more than 2^24 pixels", "use smaller pictures"
        ),
        "ReduceMean": Rule(spatial_mean, "only over height and width", "use GlobalAveragePool"),
        **{name: refused(CPU, REPLACE) for name in ("Sqrt", "Div", "Pow", "Reciprocal")},
        "Abs": refused(CPU, ABS),
        "Min": refused(CPU, "write the clamp as ReLU6, scales folded"),
    },
)

QUALCOMM = Family(
    "Qualcomm QNN",
    "depth_to_space",
    True,
    {
        **COMMON,
        **taken("ConvTranspose", "HardSigmoid", "DepthToSpace", "ReduceMean", "Sqrt", "Div", "Pow", "Reciprocal"),
        **taken("Round", "Abs", "Max", "Min", "Sub", "Neg"),
    },
    wide={
        **taken("Relu", "LeakyRelu", "Clip", "Sigmoid", "Mul", "Add", "GlobalAveragePool", "DepthToSpace", "Concat"),
        **QUANTIZERS,
        "Conv": ONE_TYPE,
    },
)

RKNN = Family(
    "Rockchip RKNN2",
    "depth_to_space",
    True,
    {
        **COMMON,
        **taken(
            "ConvTranspose", "HardSigmoid", "DepthToSpace", "ReduceMean", "Sqrt", "Div", "Pow", "Max", "Min", "Sub"
        ),
        "Reciprocal": refused("not supported", "use torch's TorchScript exporter, which writes Div; " + REPLACE),
        "Round": refused("not supported", HOST),
        "Abs": refused("not supported", ABS),
        "Neg": refused("not supported", "fold the sign into the weights"),
    },
)

AXERA = Family(
    "AXERA 650",
    "transpose",
    False,
    {
        **COMMON,
        **taken("HardSigmoid", "ReduceMean", "Sqrt", "Div", "Round", "Abs", "Max", "Min", "Sub"),
        "ConvTranspose": Rule(small_output_padding, "output_padding above the padding at the end", SUB_PIXEL),
        "DepthToSpace": Rule(mode("DCR"), "only mode DCR, and PixelShuffle is CRD", "export with --deconv transpose"),
        "Pow": Rule(lambda node: prod(node.inputs[1]) == 1, "only a number as exponent", REPLACE),
        "Reciprocal": refused("not in its list", "use torch's TorchScript exporter, which writes Div; " + REPLACE),
        "Neg": refused("not in its list", "fold the sign into the weights"),
    },
)

NXP_CLAMPS = limits((0, 6), (0, 1), (-1, 1), (0, float("inf")))

NXP = Family(
    "NXP Neutron",
    "concat",
    False,
    {
        **COMMON,
        **GDN_REFUSED,
        **taken("Abs", "Max", "Neg"),
        "Conv": Rule(
            lambda node: node.number("group", 1) in (1, node.inputs[0][1]),
            "only ungrouped or depthwise",
            "use one of these",
        ),
        "Clip": Rule(
            NXP_CLAMPS, "only the limits (0,6), (0,1), (-1,1) and (0,inf)", "write it as ReLU6, scales folded"
        ),
        "Mul": Rule(multiple_of_8, "only sizes that are multiples of 8", "use channels in multiples of 8"),
        "Add": Rule(lambda node: node.inputs[0] == node.inputs[1], "only equal shapes", "fold the number into a bias"),
        "Concat": Rule(
            lambda node: all(shape[-1] % 8 == 0 for shape in node.inputs),
            "only channels in multiples of 8",
            "use channels in multiples of 8",
        ),
        "GlobalAveragePool": Rule(two_dimensional, "only 4D", "keep batch, channels, height and width"),
        "ReduceMean": Rule(spatial_mean, "only over height and width of 4D", "use GlobalAveragePool"),
        "Transpose": Rule(channels_last_and_back, "only between NCHW and NHWC", "export with --deconv concat"),
        "HardSigmoid": refused("not in its list", "write it as Mul, Add, Clip(0, 1), as the export does"),
        "Round": refused("not in its list", HOST),
        "DepthToSpace": refused("not in its list", "export with --deconv concat"),
        "Div": refused("only by constants; GDN divides by what it computes", REPLACE),
    },
)

TENSORRT = Family(
    "TensorRT 10",
    "depth_to_space",
    False,
    {
        **COMMON,
        **taken("ConvTranspose", "HardSigmoid", "DepthToSpace", "ReduceMean", "Sqrt", "Div", "Pow", "Reciprocal"),
        **taken("Round", "Abs", "Max", "Min", "Sub", "Neg"),
        "QuantizeLinear": Rule(
            zero_point_0,
            "only int8 with zero point 0",
            "use the symmetric int8 file that export.npu --target rtx-sm86 --out DIR writes",
        ),
        "DequantizeLinear": Rule(
            zero_point_0,
            "only int8 with zero point 0",
            "use the symmetric int8 file that export.npu --target rtx-sm86 --out DIR writes",
        ),
    },
    static=False,
)

IN_FLOAT = "stays in float between a DequantizeLinear and a QuantizeLinear"

ORT = Family(
    "ORT CPU, int8",
    "concat",
    True,
    {
        **COMMON,
        **taken("DepthToSpace"),
        "ConvTranspose": refused("no int8 kernel: " + IN_FLOAT, SUB_PIXEL),
        "HardSigmoid": refused(IN_FLOAT, "write it as Mul, Add, Clip(0, 1), as the export does"),
        "ReduceMean": refused(IN_FLOAT, "use GlobalAveragePool"),
        **{name: refused(IN_FLOAT, REPLACE) for name in ("Sqrt", "Div", "Pow", "Reciprocal")},
        **{name: refused(IN_FLOAT, "fold it into a convolution") for name in ("Abs", "Neg", "Sub", "Max", "Min")},
        "Round": refused(IN_FLOAT, HOST),
    },
    static=False,
    wide={
        **dict.fromkeys(COMMON, refused("no 16-bit kernel: " + IN_FLOAT, "give 16 bits to few tensors")),
        **taken("DepthToSpace"),
        **MOVES,
        **QUANTIZERS,
    },
)

FAMILIES = (ETHOS_U, QUALCOMM, RKNN, AXERA, NXP, TENSORRT, ORT)


@dataclass(frozen=True)
class Finding:
    """A node that a family does not support or, if `stated` is False, that its vendor does not mention."""

    family: str
    node: str
    operator: str
    stated: bool
    reason: str
    remedy: str


def findings(nodes: list[Node], family: Family) -> list[Finding]:
    """The nodes of a graph that a family does not support, in the graph's order.

    A dynamic height or width counts as one node, the graph's input.
    """
    found = []
    for node in nodes:
        if node.operator == "Input":
            if family.static and min(node.outputs[0]) < 1:
                remedy = "export without --dynamic"
                found.append(Finding(family.name, node.name, "Input", True, "only graphs of one size", remedy))
        elif node.operator not in family.rules:
            remedy = "ask its compiler"
            found.append(Finding(family.name, node.name, node.operator, False, "its list does not say", remedy))
        elif (rule := family.rules[node.operator]) and not rule.holds(node):
            found.append(Finding(family.name, node.name, node.operator, True, rule.reason, rule.advice(node)))
        elif "uint16" in node.stored:
            if node.operator not in family.wide:
                reason = "its list does not say whether with 16-bit activations"
                found.append(Finding(family.name, node.name, node.operator, False, reason, "ask its compiler"))
            elif (rule := family.wide[node.operator]) and not rule.holds(node):
                found.append(Finding(family.name, node.name, node.operator, True, rule.reason, rule.advice(node)))
    return found
