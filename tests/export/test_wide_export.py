"""The export of activations of 16 bits: opset, types, ONNX Runtime's result, and what families say of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from codecs_for_export import make, save
from onnx import numpy_helper

from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.network.codec import Codec
from codec.quantization.calibrate import calibrate
from codec.quantization.freeze import frozen
from export.__main__ import main
from export.chips.operators import ETHOS_U, ORT, QUALCOMM, findings
from export.graph.build import build, in_int8
from export.graph.check import compare
from export.graph.forms import float_twin
from export.graph.nodes import read
from export.graph.parts import Part
from export.pictures import sample_picture

SIZE = 64


def wide(act: str, globs: str, arch: str = "bmshj2018_factorized") -> Codec:
    codec = make(act, arch=arch)
    return frozen(calibrate(codec, [sample_picture(SIZE)], Quantization("all", hyper=hasattr(codec, "h_a"), a16=globs)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "globs", "arch", "part"),
    [
        ("relu", "g_s.after_5", "bmshj2018_factorized", "decoder"),
        ("relu", "*", "bmshj2018_hyperprior", "h_a"),
        ("gate_mlp", "g_s.after_add_2", "bmshj2018_factorized", "decoder"),
        ("gate_mlp", "g_a.after_mul_1,g_a.after_add", "mbt2018_mean", "encoder"),
        ("gdnish", "g_*", "bmshj2018_hyperprior", "full"),
    ],
)
def test_onnx_runtime_gives_what_fake_quantization_gives(act: str, globs: str, arch: str, part: Part) -> None:
    codec, x = wide(act, globs, arch), sample_picture(SIZE)
    for deconv in ("concat", "depth_to_space"):
        model = build(codec, part, deconv, x)
        assert model.opset_import[0].version == 21
        assert {16, 8} == {8 * numpy_helper.to_array(each).dtype.itemsize for each in zeros(model)}
        result = compare(model, codec, part, x)
        assert result.passed, result.words
        if part == "decoder":
            assert "100.000% of x_hat within one step" in result.words


def zeros(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The zero points of the activations."""
    names = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return [each for each in model.graph.initializer if each.name in names]


def test_a_graph_without_them_has_the_opset_and_the_bytes_that_it_had() -> None:
    codec, plain, x = wide("relu", "g_s.after_5"), wide("relu", ""), sample_picture(SIZE)
    assert build(plain, "decoder", "concat", x).opset_import[0].version == 13
    encoders = [build(each, "encoder", "concat", x).SerializeToString() for each in (codec, plain)]
    assert encoders[0] == encoders[1]


def test_families_say_which_operators_take_them() -> None:
    x = sample_picture(SIZE)
    nodes = read(build(wide("gate_mlp", "g_s.after_add_2"), "decoder", "depth_to_space", x))
    assert not findings(nodes, QUALCOMM)
    assert {each.operator for each in findings(nodes, ORT)} == {"Conv", "Add"}
    nodes = read(build(wide("relu", "g_s.after_1"), "decoder", "depth_to_space", x))  # beside y, which has 8 bits
    (mixed,) = findings(nodes, QUALCOMM)
    assert (mixed.operator, mixed.stated) == ("Conv", True)
    assert "8-bit and 16-bit" in mixed.reason
    unstated = findings(read(build(wide("relu", "g_s.after_5"), "decoder", "concat", x)), ETHOS_U)
    assert unstated
    assert not any(each.stated for each in unstated)


def test_the_float_twin_has_the_range_of_each_tensor() -> None:
    codec = wide("relu", "g_s.after_5")
    model = build(codec, "decoder", "depth_to_space", sample_picture(SIZE))
    _, ranges = float_twin(model)
    scale = codec.g_s.get_submodule("quantizers.after_5").scale
    assert any(np.isclose(high, 32767 * scale) and np.isclose(low, -32768 * scale) for low, high in ranges.values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--opset 17",
            "--opset 17 has no 16-bit activations, and g_s.after_5 has 16 bits: leave --opset out, or give 21",
        ),
        ("--opset 18", "must be 13 to 17, or 21"),
        ("--a16 g_s.*", "--a16 g_s.* needs --calib_dir"),
    ],
)
def test_what_cannot_be_written_is_refused(words: str, says: str, tmp_path: Path) -> None:
    codec = calibrate(make("relu"), [sample_picture(SIZE)], Quantization("all", a16="g_s.after_5"))
    ckpt = save(codec, tmp_path / "wide.safetensors")
    out = tmp_path / "a.onnx"
    given = ["--ckpt", str(ckpt), "--part", "decoder", "--out", str(out), "--input_size", "64", "--precision", "int8"]
    with pytest.raises(InputError, match=says.replace("*", r"\*")):
        main([*given, *words.split()])
    assert not out.exists()


def test_photographs_give_them_too(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "coffee.png").symlink_to(photographs / "coffee.png")
    codec = in_int8(make("relu"), "decoder", folder, (SIZE, SIZE), "it", "g_s.after_3")
    assert build(codec, "decoder", "concat", sample_picture(SIZE)).opset_import[0].version == 21
    with pytest.raises(
        InputError, match=r"a16 g_a\.\*: no quantized activation has this name; there are g_s\.after_1, "
    ):
        in_int8(make("relu"), "decoder", folder, (SIZE, SIZE), "it", "g_a.*")
