"""`python -m export`: files that are checked before they are there, and one line where they cannot be."""

import pickle
import platform
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from codecs_for_export import in_int8, make, save, trained
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from programs import run
from torch import Tensor

from coco224.errors import DataError
from codec.bitstream.tables import read_tables
from codec.errors import InputError
from codec.quantization.layers import quantize_layer
from codec.quantization.observers import OBSERVERS
from codec.quantization.pairs import QuantizedPair, QuantizedProduct, QuantizedSum
from codec.quantization.quantizers import ActivationQuantizer, Switches, Wiring
from export.__main__ import main
from export.graph.build import build
from export.graph.check import compare, optimized, runner
from export.graph.onnx_file import to_onnx
from export.graph.qdq import to_int8
from export.pictures import sample_picture

pytestmark = pytest.mark.slow

ACTS = ("relu", "relu_mlp", "gate", "gate_mlp", "gdnish", "gdn")


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Operators that ONNX Runtime really executes on a CPU, and how many of each."""
    return Counter(node.op_type for node in optimized(model))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {act: save(make(act), folder / f"{act}.safetensors") for act in ACTS}


@pytest.fixture(scope="module")
def photographs_to_calibrate(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("chelsea.png", "coffee.png"):
        (folder / name).symlink_to(photographs / name)
    return folder


def export(ckpt: Path, part: str, out: Path, *more: object) -> onnx.ModelProto:
    words = ["--ckpt", ckpt, "--part", part, "--out", out, "--input_size", 96, *more]
    assert main([str(word) for word in words]) == 0
    return onnx.load(out)


def refusal(*words: object) -> str:
    with pytest.raises((InputError, DataError)) as error:
        main([str(word) for word in words])
    return str(error.value)


def test_the_command_as_it_is_written(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "onnx" / "dec.onnx"
    words = ("--ckpt", checkpoints["relu"], "--part", "decoder", "--out", out, "--input_size", "224")
    done = run("-m", "export", *words)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "x_hat differs by" in done.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ["dec.onnx", "dec.tables"]
    model = onnx.load(out)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
    assert [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim] == [1, 12, 14, 14]
    assert len(read_tables(out.with_suffix(".tables")).medians) == 12


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("part", ["full", "encoder", "decoder"])
def test_every_block_in_float_at_every_opset(
    act: str, part: str, checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opset = 13 + ACTS.index(act) % 5
    deconv = ("transpose", "concat", "depth_to_space", "concat", "auto", "concat")[ACTS.index(act)]
    model = export(checkpoints[act], part, tmp_path / "a.onnx", "--opset", opset, "--deconv", deconv)
    assert model.opset_import[0].version == opset
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"Pow", "ReduceMean", "HardSigmoid", "Identity", "Constant"} & kinds.keys()
    assert kinds["Sqrt"] == (act == "gdn") * (6 if part == "full" else 3)
    assert bool(kinds["Round"]) == (part == "full")
    assert bool(kinds["ConvTranspose"]) == (part != "encoder" and deconv in ("transpose", "auto"))
    assert "1e-04 allowed" in capsys.readouterr().out


@pytest.mark.parametrize("act", ACTS)
def test_every_block_in_int8(
    act: str, checkpoints: dict[str, Path], photographs_to_calibrate: Path, tmp_path: Path
) -> None:
    for part in ("full", "encoder", "decoder"):
        words = ("--precision", "int8", "--calib_dir", photographs_to_calibrate)
        model = export(checkpoints[act], part, tmp_path / "a.onnx", *words)
        assert {each.key: each.value for each in model.metadata_props}["deconv"] == "concat"  # --deconv auto
        byte = onnx.TensorProto.UINT8
        assert {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)} == {byte}
        counts = operators(model)
        in_float = {"Conv", "FusedConv", "ConvTranspose", "Add", "Mul", "Clip", "Relu", "LeakyRelu", "DequantizeLinear"}
        assert counts["QLinearConv"]
        assert act == "gdn" or not in_float & counts.keys(), counts


@pytest.mark.parametrize("act", ["relu", "gate"])
@pytest.mark.parametrize("scope", ["encoder", "decoder"])
def test_ranges_of_training_and_of_photographs_in_one_codec(
    act: str, scope: str, photographs_to_calibrate: Path, tmp_path: Path
) -> None:
    x = sample_picture(96)
    checkpoint = save(trained(act, scope, x), tmp_path / "c.safetensors")
    words = ("--precision", "int8", "--calib_dir", photographs_to_calibrate)
    full = export(checkpoint, "full", tmp_path / "full.onnx", *words)
    counts = operators(full)
    assert counts["QLinearConv"] > 0
    assert not {"Conv", "FusedConv", "ConvTranspose"} & counts.keys(), counts
    assert "leave --calib_dir out" in refusal("--ckpt", checkpoint, "--part", scope, "--out", "a.onnx", *words)
    own = export(checkpoint, scope, tmp_path / "own.onnx", "--precision", "int8")
    constants = [{each.name: each.raw_data for each in model.graph.initializer} for model in (own, full)]
    learned = {data for name, data in constants[0].items() if len(data) > 64}  # weights and their scales
    assert learned <= set(constants[1].values())


@pytest.mark.parametrize("act", ACTS)
@torch.no_grad()
def test_int8_files_compute_the_codecs_own_integers(act: str, picture: Tensor) -> None:
    x = picture[..., :256, 128:]
    codec = in_int8(make(act, N=32, M=48), x)
    symbols = codec.entropy_bottleneck.symbols(codec.g_a(x))
    (found,) = runner(build(codec, "encoder", "concat", x))(x)
    assert (found != symbols.numpy()).mean() < 1e-4
    (x_hat,) = runner(build(codec, "decoder", "concat", x))(symbols)
    expected = codec.g_s(symbols + codec.entropy_bottleneck.medians())
    off = np.abs(x_hat - expected.numpy()) * 255 > 0.5
    assert off.mean() <= (1e-4 if act == "gdn" else 0)  # which is in float


@pytest.mark.parametrize(("kind", "pair"), [("QLinearMul", QuantizedProduct), ("QLinearAdd", QuantizedSum)])
@torch.no_grad()
def test_sums_and_products_are_those_of_onnx_runtime(kind: str, pair: type[QuantizedPair]) -> None:
    if kind == "QLinearAdd" and platform.machine() != "x86_64":
        pytest.skip("ONNX Runtime adds in another way here")
    draw = np.random.default_rng(0)
    every = [each.ravel().astype(np.uint8) for each in np.meshgrid(np.arange(256), np.arange(256))]
    for _ in range(40):
        high = draw.uniform(0.5, 3, 2)
        ends = [(-draw.uniform(0.5, 3), each) for each in (*high, high.prod() if kind == "QLinearMul" else high.sum())]
        quantizers = [ActivationQuantizer(Switches(quantize=True), OBSERVERS["ema"], each) for each in ends]
        for each in quantizers:
            each.fix_scale()
        grids = [(each.scale.numpy(), each.zero_point.numpy().astype(np.uint8)) for each in quantizers]
        a, b = ((torch.from_numpy(q.astype(np.float32)) - z) * s for q, (s, z) in zip(every, grids, strict=False))
        ours = pair(Switches(quantize=True), Wiring(tuple(quantizers[:2]), quantizers[2])).eval()(a, b)
        found = quantizers[2].integers(quantizers[2](ours)) + quantizers[2].zero_point
        assert np.array_equal(found.numpy(), in_onnx_runtime(kind, every, grids))


def in_onnx_runtime(kind: str, values: list[np.ndarray], grids: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """What a node of two uint8 tensors and three scales and zero points gives."""
    constants = [numpy_helper.from_array(each, f"c{i}") for i, each in enumerate(sum(grids, ()))]
    inputs = ["a", "c0", "c1", "b", "c2", "c3", "c4", "c5"]
    node = helper.make_node(kind, inputs, ["y"], domain="com.microsoft")
    a, b, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, [len(values[0])]) for name in "aby")
    graph = helper.make_graph([node], kind, [a, b], [y], constants)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, dict(zip("ab", values, strict=True)))
    return result


@torch.no_grad()
def test_weights_in_a_file_are_the_codecs_own_integers() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(192, 192, 5)  # 921,600 weights, some of them half-way between two integers
    quantize_layer(layer, Switches(follow=False, quantize=True), per_channel=True)
    layer.update_weight_scale()
    own = layer.eval().weight_quantizer.integers(layer.weight)
    model = to_onnx(layer, torch.zeros(1, 192, 5, 5), ("x",), ("y",), 13, False)
    to_int8(model)
    (written,) = (
        numpy_helper.to_array(each)
        for each in model.graph.initializer
        if each.data_type == TensorProto.INT8 and len(each.dims) == 4
    )
    assert np.array_equal(written, own.numpy())


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_dynamic_models_take_three_sizes(precision: str, picture: Tensor) -> None:
    codec = make("relu")
    codec = in_int8(codec, picture[..., :96, :96]) if precision == "int8" else codec
    for part in ("encoder", "decoder", "full"):
        model = build(codec, part, "concat", picture[..., :64, :64], dynamic=True)
        kinds = {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)}
        assert kinds == {onnx.TensorProto.UINT8 if precision == "int8" else onnx.TensorProto.FLOAT}
        for height, width in ((64, 64), (96, 208), (240, 16)):
            result = compare(model, codec, part, picture[..., :height, :width])
            assert result.passed, result.words


def test_an_encoder_whose_symbols_do_not_fit_stays_float_there(picture: Tensor) -> None:
    codec = make("relu")
    codec.entropy_bottleneck._offset[0] = -200
    x = picture[..., :96, :96]
    codec = in_int8(codec, x)
    assert codec.entropy_bottleneck.symbol_limits is None
    for part, name in (("encoder", "y"), ("decoder", "y_hat")):
        model = build(codec, part, "concat", x)
        outer = model.graph.output if part == "encoder" else model.graph.input
        assert (outer[0].name, outer[0].type.tensor_type.elem_type) == (name, onnx.TensorProto.FLOAT)
        assert operators(model)["QLinearConv"] == (3 if part == "encoder" else 5)
        assert compare(model, codec, part, x).passed


def test_medians_are_exact_at_the_borders_too(picture: Tensor) -> None:
    codec = make("relu")
    with torch.no_grad():
        codec.entropy_bottleneck.quantiles += 100  # so large that a digit more is needed
    x = picture[..., :64, :64]
    quantized = in_int8(codec, x)
    symbols = quantized.entropy_bottleneck.symbols(quantized.g_a(x))
    expected = quantized.g_s(symbols + quantized.entropy_bottleneck.medians())
    (x_hat,) = runner(build(quantized, "decoder", "depth_to_space", x))(symbols)
    steps = np.abs(x_hat - expected.detach().numpy()) * 255
    assert steps.max() < 1.01
    assert steps.mean() < 0.01


def test_a_plain_checkpoint_of_compressai(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": make("gdn").state_dict()}, theirs)
    kinds = Counter(node.op_type for node in export(theirs, "encoder", tmp_path / "a.onnx").graph.node)
    assert kinds["Sqrt"] == 3
    model = export(theirs, "encoder", tmp_path / "a.onnx", "--replace_parts", "encoder")
    assert Counter(node.op_type for node in model.graph.node)["Relu"] == 3
    torch.save(make("relu").state_dict(), theirs)
    assert export(theirs, "decoder", tmp_path / "a.onnx", "--replace_parts", "all")
    line = refusal("--ckpt", theirs, "--part", "encoder", "--out", "a.onnx", "--replace_parts", "encoder")
    assert "g_s" in line
    line = refusal("--ckpt", checkpoints["relu"], "--part", "full", "--out", "a.onnx", "--replace_parts", "all")
    assert "leave --replace_parts out" in line


def test_a_file_that_is_no_checkpoint_is_refused_in_our_own_words(tmp_path: Path) -> None:
    for name, data in (("junk.pth", b"junk"), ("empty.pth.tar", b""), ("c.pth", pickle.dumps(Counter))):
        (tmp_path / name).write_bytes(data)
        with warnings.catch_warnings(action="error"):
            line = refusal("--ckpt", tmp_path / name, "--part", "encoder", "--out", tmp_path / "a.onnx")
        assert "not read" in line
        assert "weights" not in line.lower()  # torch's own advice


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--opset 12", "--opset 12: must be 13 to 17, or 21"),
        ("--input_size 200", "--input_size 200: must be a multiple of 16"),
        ("--input_size 65536x65536", "--input_size 65536: must be a multiple of 16, at most 16,777,216 pixels"),
        ("--part middle", "--part"),
        ("--deconv fold", "--deconv"),
        ("--precision int8", "give --calib_dir"),
        ("--calib_dir .", "--precision int8"),
        ("--precision int8 --calib_dir EMPTY", "no picture there"),
        ("--ckpt missing.safetensors", "no such file"),
        ("--out model.pt", "ends in .onnx"),
        ("--out /proc/none/model.onnx", "it cannot be written there"),
        ("--ckpt missing --out /proc/none/model.onnx", "it cannot be written there"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: str, expected: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    given = {"--ckpt": checkpoints["relu"], "--part": "encoder", "--out": out, "--input_size": 64}
    more = [str(tmp_path) if word == "EMPTY" else word for word in words.split()]
    given |= dict(zip(more[::2], more[1::2], strict=True))
    assert expected in refusal(*(word for pair in given.items() for word in pair))
    assert not list(tmp_path.iterdir())


def test_a_link_does_not_lead_the_output_to_a_photograph(
    checkpoints: dict[str, Path], photographs_to_calibrate: Path, tmp_path: Path
) -> None:
    photograph = next(path for path in photographs_to_calibrate.iterdir() if path.is_file())
    (tmp_path / "enc.tables").symlink_to(photograph)
    words = ("--precision", "int8", "--calib_dir", photographs_to_calibrate, "--out", tmp_path / "enc.onnx")
    assert "reads this file too" in refusal("--ckpt", checkpoints["relu"], "--part", "encoder", *words)


def test_a_graph_that_differs_is_not_written(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    plugin = tmp_path / "moody.py"
    plugin.write_text(
        "import random\nfrom torch import nn\nfrom codec.blocks import register_activation\n"
        "class Moody(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x * random.random()\n"
        "@register_activation('moody')\n"
        "class MoodyActivation:\n"
        "    encoder = decoder = staticmethod(lambda channels, options: Moody())\n"
    )
    from codec.blocks import load_plugin

    load_plugin(plugin)
    checkpoint = save(make("moody"), tmp_path / "moody.safetensors")
    out = tmp_path / "out" / "moody.onnx"
    line = refusal("--ckpt", checkpoint, "--part", "encoder", "--out", out, "--input_size", 64)
    assert line.endswith("nothing was written")  # no guess at the cause
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_block_of_the_users_own_is_exported(tmp_path: Path, photographs_to_calibrate: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from torch import nn\nfrom codec.blocks import register_activation\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.mix, self.act = nn.Conv2d(channels, channels, 1), nn.Hardsigmoid()\n"
        "    def forward(self, x):\n"
        "        return x * self.act(self.mix(x))\n"
        "@register_activation('mine')\n"
        "class MineActivation:\n"
        "    encoder = decoder = staticmethod(lambda channels, options: Mine(channels))\n"
    )
    from codec.blocks import load_plugin

    load_plugin(plugin)
    checkpoint = save(make("mine"), tmp_path / "mine.safetensors")
    model = export(checkpoint, "decoder", tmp_path / "mine.onnx", "--plugin", plugin)
    assert not Counter(node.op_type for node in model.graph.node)["HardSigmoid"]
    words = ("--precision", "int8", "--calib_dir", photographs_to_calibrate)
    assert (
        operators(export(checkpoint, "encoder", tmp_path / "mine.onnx", "--plugin", plugin, *words))["QLinearConv"] == 7
    )


def test_without_the_extra_one_line_says_how_to_install_it(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['onnx'] = None; from export.__main__ import main; from codec.cli import run; run(main)"
    )
    done = run("-c", hidden, "--ckpt", checkpoints["relu"], "--part", "full", "--out", tmp_path / "a.onnx")
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "[onnx]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def kodak() -> Tensor:
    path = Path(__file__).parents[3] / "shared/data/kodak/kodim05.png"
    if not path.is_file():
        pytest.skip("no ../shared/data/kodak here")
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255


def test_the_bars_on_a_real_picture_of_768x512(kodak: Tensor) -> None:
    codec = make("relu", N=64, M=96)
    for part in ("encoder", "decoder", "full"):
        result = compare(build(codec, part, "transpose", kodak), codec, part, kodak)
        assert result.passed, result.words
    quantized = in_int8(codec, kodak)
    result = compare(build(quantized, "decoder", "concat", kodak), quantized, "decoder", kodak)
    assert result.passed, result.words
