"""The runtime reads and writes the codec's own files, at any size, without torch."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from codecs_for_export import in_int8, make
from PIL import Image
from programs import run
from torch import Tensor

from coco224.errors import DataError
from codec.bitstream.container import unpack
from codec.bitstream.tables import to_bytes
from codec.errors import InputError, SomeFailed
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.network.tables import tables_of
from export.cpu import openvino_settings, sums_saturate
from export.graph.build import build, write
from export.runtime import Model, decode, encode, main, session_options
from export.runtime.openvino import _tensor

PRECISIONS = ("float", "int8")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return make("relu")


@pytest.fixture(scope="module")
def models(codec: Codec, picture: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoder and decoder, float and int8, for any size, and for 96x96 alone."""
    folder = tmp_path_factory.mktemp("models")
    x = picture[..., :96, :96]
    paths = {}
    for precision, exported in (("float", codec), ("int8", in_int8(codec, picture))):
        for part in ("encoder", "decoder"):
            for name, dynamic in (("any", True), ("96", False)):
                path = folder / f"{precision}-{part}-{name}.onnx"
                tables = tables_of(codec)
                model = build(exported, part, "concat", x, dynamic=dynamic, fingerprint=tables.fingerprint)
                write(path, model.SerializeToString(), to_bytes(tables))
                paths[path.stem] = path
    return paths


@pytest.fixture
def pixels(picture: Tensor) -> np.ndarray:
    """195x243: no multiple of 16."""
    return (picture[0, :, 40:235, 100:343] * 255).round().byte().permute(1, 2, 0).numpy()


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_files_decode_with_the_codec_to_the_same_symbols_and_the_reverse(
    precision: str, codec: Codec, models: dict[str, Path], pixels: np.ndarray
) -> None:
    theirs = FileCodec(codec)
    encoder, decoder = (Model(models[f"{precision}-{part}-any"], part) for part in ("encoder", "decoder"))
    data = encode(pixels, encoder)
    assert unpack(data, theirs.coder)[:2] == pixels.shape[:2]
    assert np.array_equal(unpack(data, theirs.coder)[2], unpack(data, decoder.coder)[2])
    (decoded,) = theirs.decompress([data])
    off = difference(decode(data, decoder), decoded.permute(1, 2, 0).numpy())
    assert off.max() <= (1 if precision == "float" else 12)
    (own,) = theirs.compress(as_tensor(pixels)[None])
    assert decode(own, decoder).shape == pixels.shape
    if precision == "float":
        assert own == data


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles_of_a_fixed_size_make_what_the_whole_picture_makes(
    precision: str, models: dict[str, Path], pixels: np.ndarray
) -> None:
    whole, tiled = (Model(models[f"{precision}-encoder-{name}"], "encoder") for name in ("any", "96"))
    data, other = encode(pixels, whole), encode(pixels, tiled)
    symbols, tiled_symbols = (unpack(each, whole.coder)[2] for each in (data, other))
    assert (symbols != tiled_symbols).mean() < 1e-3
    whole, tiled = (Model(models[f"{precision}-decoder-{name}"], "decoder") for name in ("any", "96"))
    assert difference(decode(data, whole), decode(data, tiled)).max() <= 1


@pytest.mark.parametrize("side", [64, 80])
def test_a_model_makes_tiles_of_any_size_that_is_large_enough(
    side: int, codec: Codec, picture: Tensor, models: dict[str, Path], pixels: np.ndarray, tmp_path: Path
) -> None:
    """64 pixels are the least for convolutions that look 30 pixels aside; fewer make no tiles, but small pictures."""
    whole = Model(models["float-encoder-any"], "encoder")
    expected = unpack(encode(pixels, whole), whole.coder)[2]
    tables = tables_of(codec)
    for size, exact in ((side, True), (48, False)):
        x = picture[..., :size, :size]
        model = build(codec, "encoder", "transpose", x, fingerprint=tables.fingerprint)
        write(tmp_path / "e.onnx", model.SerializeToString(), to_bytes(tables))
        tiled = Model(tmp_path / "e.onnx", "encoder")
        assert tiled.margins == (2, 1)
        if exact:
            symbols = unpack(encode(pixels, tiled), whole.coder)[2]
            assert (symbols != expected).mean() < 1e-4  # sums in another order may move one across a half
        else:
            with pytest.raises(InputError, match="need at least 64 pixels per side"):
                encode(pixels, tiled)
            assert encode(pixels[:48, :48], tiled) == encode(pixels[:48, :48], whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_large_picture_goes_through_a_model_of_any_size_in_tiles(
    precision: str, models: dict[str, Path], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = (Model(models[f"{precision}-{part}-any"], part) for part in ("encoder", "decoder"))
    data = encode(pixels, encoder)
    picture = decode(data, decoder)
    monkeypatch.setattr("export.runtime.session.LARGEST_WHOLE", 0)
    monkeypatch.setattr("codec.tiles.SIZE", (8, 10))
    symbols, tiled = (unpack(each, encoder.coder)[2] for each in (data, encode(pixels, encoder)))
    assert (symbols != tiled).mean() < 1e-4
    assert difference(decode(data, decoder), picture).max() <= 1


def test_a_model_that_gives_no_numbers_is_refused(models: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    import onnx

    tables = models["float-encoder-any"].with_suffix(".tables").read_bytes()
    data = encode(pixels, Model(models["float-encoder-any"], "encoder"))
    for part, values in (("encoder", (np.nan, np.inf, 1e30)), ("decoder", (np.nan, np.inf, 1e30))):
        for value in values:
            model = onnx.load(models[f"float-{part}-any"])
            last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
            (bias,) = (each for each in model.graph.initializer if each.name == last.input[2])
            bias.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(bias.dims), value, np.float32), bias.name))
            write(tmp_path / f"{part}.onnx", model.SerializeToString(), tables)
            broken = Model(tmp_path / f"{part}.onnx", part)
            with pytest.raises(InputError, match="not finite"):
                _ = encode(pixels, broken) if part == "encoder" else decode(data, broken)


def test_a_picture_smaller_than_a_fixed_size_is_extended(models: dict[str, Path], pixels: np.ndarray) -> None:
    small = pixels[:50, :70]
    data = encode(small, Model(models["int8-encoder-96"], "encoder"))
    assert decode(data, Model(models["int8-decoder-96"], "decoder")).shape == small.shape


@pytest.mark.slow
def test_the_command_works_without_torch(models: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "photo.png")
    no_torch = (
        "import sys; sys.modules['torch'] = sys.modules['tqdm'] = None; "
        "from export.runtime import main; sys.exit(main(sys.argv[1:]))"
    )
    packed, back = tmp_path / "two" / "photo.bin", tmp_path / "back.png"
    encoder, decoder = (models[f"int8-{part}-any"] for part in ("encoder", "decoder"))
    for words in (
        ("encode", tmp_path / "one", tmp_path / "two", "--model", encoder),
        ("decode", packed, back, "--model", decoder),
    ):
        done = run("-c", no_torch, *words)
        assert done.returncode == 0, done.stderr
    expected = decode(packed.read_bytes(), Model(models["int8-decoder-any"], "decoder"))
    assert np.array_equal(np.array(Image.open(back)), expected)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["photo.bin"]


def test_bad_input_is_refused_in_one_line(models: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    photo, packed = tmp_path / "photo.png", tmp_path / "photo.bin"
    Image.fromarray(pixels).save(photo)
    encoder, decoder = models["float-encoder-any"], models["float-decoder-any"]
    assert main(["encode", str(photo), str(packed), "--model", str(encoder)]) == 0

    def refusal(*words: object) -> str:
        with pytest.raises(InputError) as error:
            main([str(word) for word in words])
        return str(error.value)

    out = tmp_path / "out.png"
    assert "--part decoder" in refusal("decode", packed, out, "--model", encoder)
    assert "no such file" in refusal("decode", packed, out, "--model", tmp_path / "none.onnx")
    assert "no such file" in refusal("decode", tmp_path / "none.bin", out, "--model", decoder)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal("decode", packed, out, "--model", tmp_path / "fifo")
    assert "does not open" in refusal("decode", packed, out, "--model", packed)
    assert "not a picture" in refusal("encode", packed, out, "--model", encoder)
    assert ".bmp or .png" in refusal("decode", packed, tmp_path / "out.jpg", "--model", decoder)
    packed.write_bytes(packed.read_bytes()[:-3])
    assert "truncated or altered" in refusal("decode", packed, out, "--model", decoder)
    other = make("relu", M=10)
    strange = tmp_path / "strange.tables"
    strange.write_bytes(to_bytes(tables_of(other)))
    assert "another codec" in refusal("decode", packed, out, "--model", decoder, "--tables", strange)
    assert not out.exists()


def test_a_folder_is_encoded_and_decoded_and_a_bad_picture_does_not_stop_it(
    models: dict[str, Path], pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, packed, back = (tmp_path / name for name in ("photos", "packed", "back"))
    (folder / "more").mkdir(parents=True)
    for name, side in (("b.png", 64), ("more/c.PNG", 80)):
        Image.fromarray(pixels[:side, :side]).save(folder / name)
    (folder / "a.jpg").write_bytes(b"no picture")
    encoder, decoder = models["float-encoder-any"], models["float-decoder-any"]
    words = [str(each) for each in ("encode", folder, packed, "--model", encoder)]
    with pytest.raises(SomeFailed, match=r"^1 of 3 files failed: .*a\.jpg: not a picture"):
        main(words)
    made = sorted(packed.rglob("*.bin"))
    assert [path.relative_to(packed).as_posix() for path in made] == ["b.bin", "more/c.bin"]
    assert [path.read_bytes() for path in made] == [
        encode(pixels[:side, :side], Model(encoder, "encoder")) for side in (64, 80)
    ]
    # The same command tries what failed again, and keeps the others.
    capsys.readouterr()
    Image.fromarray(pixels[:32, :32]).save(folder / "a.jpg")
    assert main(words) == 0
    assert "kept 2 of 3 files" in capsys.readouterr().err
    assert not (packed / ".export.runtime.unfinished").exists()
    with pytest.raises(InputError, match="and 2 more exist"):
        main(words)
    assert main([*words, "--overwrite"]) == 0
    assert main([str(each) for each in ("decode", packed, back, "--model", decoder)]) == 0
    assert np.array_equal(
        np.array(Image.open(back / "more" / "c.png")), decode(made[1].read_bytes(), Model(decoder, "decoder"))
    )
    with pytest.raises(InputError, match=r"--rate: this codec has a single rate"):
        main([*words, "--overwrite", "--rate", "0.5"])


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("AMD64", "fpu avx2 avx512f avx512bw", True),
        ("x86_64", None, True),  # no such file: not Linux
        ("aarch64", None, False),
    ],
)
def test_sums_saturate_on_x86_without_vnni(
    machine: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\nbogomips\t: 1\n")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert sums_saturate(cpuinfo) == expected


def test_slow_kernels_are_asked_for_where_sums_would_saturate_and_change_nothing_elsewhere(
    models: dict[str, Path], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without VNNI both sessions have the slow ones, and comparisons with PyTorch fail without them."""
    fast = Model(models["int8-encoder-any"], "encoder")
    monkeypatch.setattr("export.runtime.session.sums_saturate", lambda: True)
    assert session_options().get_session_config_entry("session.x64quantprecision") == "1"
    assert encode(pixels, fast) == encode(pixels, Model(models["int8-encoder-any"], "encoder"))
    monkeypatch.setattr("export.runtime.session.sums_saturate", lambda: False)
    with pytest.raises(RuntimeError, match="x64quantprecision"):  # not set
        session_options().get_session_config_entry("session.x64quantprecision")


def test_the_source_is_never_replaced(models: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    before = picture.read_bytes()
    with pytest.raises(InputError, match="is the source itself"):
        main(["encode", str(picture), str(picture), "--model", str(models["int8-encoder-any"])])
    encoder = models["int8-encoder-any"]
    os.mkfifo(tmp_path / "fifo")
    for target, said in (
        (encoder, "reads this file too"),
        (encoder.with_suffix(".tables"), "reads this file too"),
        (tmp_path / "fifo", "not a regular file"),
        (picture / "x", "Not a directory"),
    ):
        with pytest.raises(DataError, match=said):
            main(["encode", str(picture), str(target), "--model", str(encoder)])
    assert picture.read_bytes() == before


@pytest.mark.parametrize("saturates", [False, True])
def test_openvino_computes_int8_in_float_where_sums_would_saturate(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.cpu.sums_saturate", lambda: saturates)
    assert ("LP_TRANSFORMS_MODE" in openvino_settings(threads=2)) is saturates


def test_a_model_that_its_tables_do_not_fit_is_refused(codec: Codec, models: dict[str, Path], tmp_path: Path) -> None:
    """Though the fingerprints are the same: both are a stranger's."""
    import onnx

    tables = tables_of(codec)
    fewer = replace(tables, **{name: getattr(tables, name)[:5] for name in ("medians", "offsets", "lengths", "cdfs")})
    for part in ("encoder", "decoder"):
        model = onnx.load(models[f"float-{part}-96"])
        write(tmp_path / f"{part}.onnx", model.SerializeToString(), to_bytes(fewer))
        with pytest.raises(InputError, match="of 5 channels"):
            Model(tmp_path / f"{part}.onnx", part)


def test_a_damaged_model_is_refused_and_one_without_a_seal_is_not(
    models: dict[str, Path], pixels: np.ndarray, tmp_path: Path
) -> None:
    import onnx

    source, path = models["float-decoder-any"], tmp_path / "m.onnx"
    shutil.copy(source.with_suffix(".tables"), path.with_suffix(".tables"))
    whole = source.read_bytes()
    middle = len(whole) // 2
    model = onnx.load(source)
    model.graph.node.add(op_type="Identity", input=[model.graph.output[0].name], output=["more"])
    for content in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], model.SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged, or was changed after its export"):
            Model(path, "decoder")
    del model.graph.node[-1], model.metadata_props[-1]  # as older versions of this program wrote it
    path.write_bytes(model.SerializeToString())
    data = encode(pixels, Model(models["float-encoder-any"], "encoder"))
    assert (decode(data, Model(path, "decoder")) == decode(data, Model(source, "decoder"))).all()


def stranger(entry: int, result: int, nodes: list[Any], properties: dict[str, str]) -> bytes:
    """A graph from x [1, 3, h, w] to y, with the properties of an encoder of this program."""
    import onnx
    from onnx import helper

    ends = ("x", entry, [1, 3, "h", "w"]), ("y", result, ["b", "c", "i", "j"])
    x, y = (helper.make_tensor_value_info(*end) for end in ends)
    made = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_a_strangers_graph_is_refused_in_one_line(models: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    def through(kind: str, **more: Any) -> list[Any]:
        """12 channels, as y has, and an operator."""
        kernel = numpy_helper.from_array(np.zeros((12, 3, 1, 1), np.float32))
        constant, conv = helper.make_node("Constant", [], ["w"], value=kernel), helper.make_node("Conv", "xw", "c")
        return [constant, conv, helper.make_node(kind, ["c"], ["y"], **more)]

    def cast(to: int) -> list[Any]:
        return [helper.make_node("Cast", ["x"], ["y"], to=to)]

    source = models["float-encoder-any"]
    properties, tables = Model(source, "encoder").properties, source.with_suffix(".tables").read_bytes()
    path, floats, longs, halves = tmp_path / "m.onnx", TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16
    for entry, result, nodes, said in (
        (longs, floats, cast(floats), "takes and gives tensor(int64) and tensor(float)"),
        (halves, floats, cast(floats), "takes and gives tensor(float16)"),
        (floats, longs, cast(longs), "and tensor(int64), and a model"),
        (floats, floats, through("Identity"), "gives [1, 12, 208, 256] for an input of [3, 208, 256], which no"),
        (floats, floats, through("GlobalAveragePool"), "gives [1, 12, 1, 1] for an input of [3, 208, 256]"),
        (floats, floats, through("AveragePool", kernel_shape=[999, 999]), "its graph cannot be computed for an"),
    ):
        write(path, stranger(entry, result, nodes, properties), tables)
        with pytest.raises(InputError) as refused:
            encode(pixels, Model(path, "encoder"))
        assert said in str(refused.value)


def test_types_of_openvino_that_no_model_has_keep_their_name() -> None:
    side = SimpleNamespace(is_static=True, get_length=lambda: 3)
    port = SimpleNamespace(
        any_name="x", element_type=SimpleNamespace(to_string=lambda: "i64"), partial_shape=[side, side]
    )
    assert vars(_tensor(port)) == {"name": "x", "type": "i64", "shape": [3, 3]}
