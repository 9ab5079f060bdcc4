"""What the table of NPU families says of real exports and of small graphs."""

from collections import Counter

import numpy as np
import onnx
import pytest
from codecs_for_export import in_int8, make
from onnx import TensorProto, helper, numpy_helper

from export.chips.operators import AXERA, ETHOS_U, FAMILIES, NXP, ORT, QUALCOMM, RKNN, TENSORRT, Family, findings
from export.graph.build import build
from export.graph.nodes import macs, read
from export.pictures import sample_picture

SIDE = 64


def refused(model: onnx.ModelProto, family: Family) -> Counter[str]:
    """Operators that a family does not take, and how many of each."""
    return Counter(each.operator for each in findings(read(model), family))


def one_node(
    operator: str, inputs: list[list[int]], output: list[int], numbers: tuple = (), **attributes
) -> onnx.ModelProto:
    """A graph of one node, whose inputs are activations and then constant numbers."""
    names = [f"i{place}" for place in range(len(inputs) + len(numbers))]
    constants = [
        numpy_helper.from_array(value, name) for value, name in zip(numbers, names[len(inputs) :], strict=True)
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, inputs, strict=False)
    ]
    result = helper.make_tensor_value_info("o", TensorProto.FLOAT, output)
    node = helper.make_node(operator, names, ["o"], name="it", **attributes)
    graph = helper.make_graph([node], "small", values, [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("act", ["relu", "relu_mlp"])
def test_every_family_takes_the_relu_blocks_whole_in_its_own_form(family: Family, part: str, act: str) -> None:
    x = sample_picture(SIDE)
    codec = make(act)
    model = build(in_int8(codec, x) if family.int8 else codec, part, family.deconv, x)
    assert not findings(read(model), family)


@pytest.mark.parametrize("act", ["gate", "gate_mlp"])
def test_the_gates_have_no_node_of_which_nothing_is_stated(act: str) -> None:
    x = sample_picture(SIDE)
    codec = make(act)
    quantized = in_int8(codec, x)
    for family in FAMILIES:
        for part in ("encoder", "decoder"):
            nodes = read(build(quantized if family.int8 else codec, part, family.deconv, x))
            assert "LeakyRelu" in {node.operator for node in nodes}
            assert all(each.stated for each in findings(nodes, family)), family.name
            assert family is NXP or not findings(nodes, family)


@pytest.mark.parametrize(
    ("act", "expected"), [("gate", {"Clip": 3}), ("gate_mlp", {"Clip": 3}), ("gdnish", {"Clip": 3, "Add": 3})]
)
def test_nxp_refuses_of_other_blocks_what_the_docs_say(act: str, expected: dict[str, int]) -> None:
    x = sample_picture(SIDE)
    assert not refused(build(make(act), "encoder", "concat", x), NXP)
    assert refused(build(make(act), "decoder", "concat", x), NXP) == expected


def test_what_to_do_about_a_transposed_convolution_depends_on_whether_the_export_rewrites_it() -> None:
    def advice(kernel: int, stride: int, padding: int, extra: int) -> str:
        layer = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        weight = np.zeros((8, 8, kernel, kernel), np.float32)
        size = (8 - 1) * stride + kernel - 2 * padding + extra
        shapes = [[1, 8, 8, 8]], [1, 8, size, size]
        model = one_node("ConvTranspose", *shapes, (weight,), output_padding=[extra] * 2, **layer)
        (found,) = findings(read(model), ORT)
        return found.remedy

    assert advice(5, 2, 2, 1).startswith("export with --deconv concat")
    assert advice(3, 1, 1, 0).startswith("use a Conv")
    assert advice(5, 2, 1, 1).startswith("use a Conv")


def test_gdn_is_refused_by_nxp_with_the_reason_and_what_to_do() -> None:
    found = findings(read(build(make("gdn"), "encoder", "transpose", sample_picture(SIDE))), NXP)
    assert Counter(each.operator for each in found) == {"Sqrt": 3, "Div": 3}
    assert all(each.stated and "--act relu" in each.remedy for each in found)


def test_gdn_s_roots_and_divisions_are_left_for_the_cpu_beside_an_ethos_u() -> None:
    x = sample_picture(SIDE)
    assert refused(build(make("gdn"), "encoder", "concat", x), ETHOS_U) == {"Sqrt": 3, "Div": 3}
    assert refused(build(make("gdn"), "decoder", "concat", x), ETHOS_U) == {"Sqrt": 3}


def test_transposed_convolutions_are_taken_where_their_padding_is() -> None:
    model = build(make("relu"), "decoder", "transpose", sample_picture(SIDE))
    assert refused(model, ORT) == refused(model, ETHOS_U) == {"ConvTranspose": 4}
    assert not refused(model, RKNN)
    assert not refused(model, AXERA)
    assert not refused(model, QUALCOMM)
    (first, *_) = findings(read(model), NXP)
    assert not first.stated


def test_pixel_shuffle_is_of_the_mode_that_axera_lacks() -> None:
    model = build(make("relu"), "decoder", "depth_to_space", sample_picture(SIDE))
    assert refused(model, AXERA) == refused(model, NXP) == {"DepthToSpace": 4}
    assert not refused(model, RKNN)


def test_tensorrt_wants_zero_point_0() -> None:
    x = sample_picture(SIDE)
    model = build(in_int8(make("relu"), x), "encoder", "concat", x)
    assert set(refused(model, TENSORRT)) == {"QuantizeLinear", "DequantizeLinear"}


def test_an_open_size_is_refused_by_what_wants_static_shapes() -> None:
    model = build(make("relu"), "encoder", "concat", sample_picture(SIDE), dynamic=True)
    assert refused(model, QUALCOMM) == {"Input": 1}
    assert not refused(model, ORT)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "families"),
    [
        ("Reciprocal", [[1, 8, 4, 4]], {}, [ETHOS_U, RKNN, AXERA, NXP, ORT]),
        ("Round", [[1, 8, 4, 4]], {}, [RKNN, NXP, ORT]),
        ("HardSigmoid", [[1, 8, 4, 4]], {}, [NXP, ORT]),
        ("Mul", [[1, 3, 5, 5], [1, 3, 5, 5]], {}, [NXP]),
        ("Add", [[1, 8, 4, 4], [1, 8, 1, 1]], {}, [NXP]),
        ("Abs", [[1, 8, 4, 4]], {}, [ETHOS_U, RKNN, ORT]),
    ],
)
def test_single_operators(operator: str, inputs: list, attributes: dict, families: list[Family]) -> None:
    model = one_node(operator, inputs, inputs[0], **attributes)
    assert {family.name for family in FAMILIES if refused(model, family)} == {family.name for family in families}


def test_nxp_takes_four_clamps() -> None:
    def clip(low: float, high: float) -> Counter[str]:
        limits = (np.array(low, np.float32), np.array(high, np.float32))
        return refused(one_node("Clip", [[1, 8, 4, 4]], [1, 8, 4, 4], limits), NXP)

    assert not clip(0, 6)
    assert not clip(0, 1)
    assert clip(0.02, 30) == {"Clip": 1}


def test_an_unknown_operator_is_not_stated_and_not_refused() -> None:
    found = findings(read(one_node("Erf", [[1, 8, 4, 4]], [1, 8, 4, 4])), NXP)
    assert [each.stated for each in found] == [False]


def test_multiplications_are_those_of_the_convolutions() -> None:
    N, M, h = 8, 12, SIDE // 2
    model = build(make("relu", N=N, M=M), "encoder", "transpose", sample_picture(SIDE))
    expected = 25 * (h**2 * 3 * N + (h // 2) ** 2 * N * N + (h // 4) ** 2 * N * N + (h // 8) ** 2 * N * M)
    assert macs(read(model)) == expected
