"""The forms of int8 graphs for compilers that take no uint8: what they hold, and that they compute the same."""

import numpy as np
import onnx
import pytest
from codecs_for_export import in_int8, make

from codec.network.codec import Codec
from export.chips.nvidia import as_taken, in_bytes
from export.chips.part import QuantizedPart, run
from export.chips.sophgo import grid
from export.graph.forms import float_twin, symmetric, weight_scales
from export.pictures import sample_picture

X = sample_picture(64)
PARTS = [("bmshj2018_factorized", "encoder"), ("bmshj2018_factorized", "decoder"), ("bmshj2018_hyperprior", "h_a")]


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return {arch: in_int8(make("gate_mlp", arch=arch), X) for arch, _ in PARTS}


@pytest.mark.parametrize(("arch", "name"), PARTS)
def test_the_float_twin_has_our_weights_and_ranges(arch: str, name: str, codecs: dict[str, Codec]) -> None:
    part = QuantizedPart(codecs[arch], name, X)
    twin, ranges = float_twin(part.graph("depth_to_space"))
    kinds = {node.op_type for node in twin.graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    assert all(each.data_type == onnx.TensorProto.FLOAT for each in twin.graph.initializer)
    entry, end = twin.graph.input[0].name, twin.graph.output[0].name
    scale, zero = grid(ranges[entry])
    real = run(twin, ((part.example.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32))
    scale, zero = grid(ranges[end])
    steps = np.abs(real / scale + zero - part.output)
    # The twin does not round between its layers.
    assert steps.mean() < 1.5
    named = {name for node in twin.graph.node for name in (*node.input, *node.output)}
    assert set(ranges) <= named


@pytest.mark.parametrize(("arch", "name"), PARTS)
def test_the_symmetric_form_has_int8_with_zero_point_0_alone(arch: str, name: str, codecs: dict[str, Codec]) -> None:
    part = QuantizedPart(codecs[arch], name, X)
    form = symmetric(part.graph("depth_to_space"))
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in form.graph.initializer}
    assert {value.dtype.name for value in constants.values()} <= {"float32", "int8", "int64"}
    for node in form.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    steps = np.abs(in_bytes(run(form, as_taken(form, part.example))).astype(int) - part.output)
    assert steps.mean() < 1.5


def test_symbols_lose_nothing_in_the_symmetric_form(codecs: dict[str, Codec]) -> None:
    form = symmetric(QuantizedPart(codecs[PARTS[0][0]], "encoder", X).graph("depth_to_space"))
    last = next(node for node in form.graph.node if node.output[0] == "symbols")
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in form.graph.initializer}
    assert constants[last.input[1]] == 1
    assert form.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT8
    assert form.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_every_convolution_has_a_scale_for_each_channel(codecs: dict[str, Codec]) -> None:
    model = QuantizedPart(codecs[PARTS[0][0]], "encoder", X).graph("depth_to_space")
    found = weight_scales(model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all(node.output[0] in found for node in convolutions)
    assert len(found["symbols"]) == 12
