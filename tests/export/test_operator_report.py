"""The report's command, on a small codec and on files."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from codecs_for_export import make, save, trained
from programs import run

from codec.errors import InputError
from export.chips.judge import ORT_PSNR, PSNR, Verdict
from export.json_file import write_json
from export.pictures import sample_picture
from export.report import main, markdown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A checkpoint without quantization, and a folder with one photograph."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("report")
    save(make("relu"), folder / "c.safetensors")
    for scope in ("encoder", "decoder", "all"):
        save(trained("relu", scope, sample_picture(64)), folder / f"{scope}.safetensors")
    (folder / "pictures").mkdir()
    with Image.open(photographs / "chelsea.png") as cat:
        cat.crop((0, 0, 200, 184)).save(folder / "pictures" / "cat.png")
    return folder


def test_a_checkpoint_is_reported_whole(folder: Path) -> None:
    done = run(
        *("-m", "export.report", "--ckpt", folder / "c.safetensors", "--calib_dir", folder / "pictures"),
        *("--images", folder / "pictures", "--input_size", 64, "--rounds", 2, "--json", folder / "r.json"),
        *("--compilers", folder / "none"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "r.json").read_text())
    assert sum(family["not taken"] + family["not stated"] for family in report["families"]) == 0
    for family in report["families"]:
        assert f"| {family['family']} | {family['file']} |" in done.stdout
    graphs = {row["graph"]: row for row in report["graphs"]}
    for part in ("encoder", "decoder"):
        int8 = graphs[f"{part}, int8"]
        assert int8["int8"] == int8["convolutions"] > 0
        assert int8["in_float"] == []
        assert graphs[f"{part}, float"]["int8"] == 0
        assert "Sqrt" in {kind for kind, _ in graphs[f"{part}, GDN original, float"]["in_float"]}
    assert "times as fast as the GDN original" in done.stdout
    quality = report["quality"]
    assert quality["ONNX int8"]["psnr"] == pytest.approx(quality["fake-quantized"]["psnr"], abs=0.05)
    assert quality["ONNX int8"]["bpp"] == pytest.approx(quality["fake-quantized"]["bpp"], rel=0.01)


def test_h_a_of_a_codec_with_means_is_reported_with_its_quality(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = save(make("relu", arch="mbt2018_mean"), folder / "mean.safetensors"), folder / "mean.json"
    words = (
        "--compilers",
        folder / "none",
        "--ckpt",
        checkpoint,
        "--calib_dir",
        folder / "pictures",
        "--images",
        folder / "pictures",
    )
    words = (*words, "--input_size", 64, "--rounds", 1, "--json", out)
    assert main([str(word) for word in words]) == 0
    assert "Encoder, h_a and decoder together, int8" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert sum(family["not taken"] + family["not stated"] for family in report["families"]) == 0
    graphs = {row["graph"]: row for row in report["graphs"]}
    assert graphs["h_a, int8"]["int8"] == graphs["h_a, int8"]["convolutions"] == 3
    assert graphs["h_a, int8"]["in_float"] == []
    quality = report["quality"]
    assert quality["ONNX int8"]["psnr"] == pytest.approx(quality["fake-quantized"]["psnr"], abs=0.05)
    assert quality["ONNX int8"]["bpp"] == pytest.approx(quality["fake-quantized"]["bpp"], rel=0.01)


@pytest.mark.parametrize(("scope", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_checkpoint_of_one_quantized_transform_is_reported(
    scope: str, other: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*more: object) -> dict:
        words = ("--ckpt", folder / f"{scope}.safetensors", "--input_size", 64, "--rounds", 1, "--json", out, *more)
        words = (*words, "--compilers", folder / "none")
        assert main([str(word) for word in words]) == 0
        return json.loads(out.read_text())

    out, pictures = folder / f"{scope}.json", folder / "pictures"
    alone = report("--images", pictures)
    assert f"{scope} in int8" in capsys.readouterr().out
    graphs = {row["graph"]: row for row in alone["graphs"]}
    assert f"{other}, int8" not in graphs
    assert graphs[f"{scope}, int8"]["int8"] == graphs[f"{scope}, int8"]["convolutions"]
    for family in alone["families"]:
        assert f"{other} in float" in family["file"] or family["file"].startswith("float")
    quality = alone["quality"]
    assert quality["ONNX int8"]["psnr"] == pytest.approx(quality["fake-quantized"]["psnr"], abs=0.05)

    both = {row["graph"]: row for row in report("--calib_dir", pictures)["graphs"]}
    assert both[f"{other}, int8"]["int8"] == both[f"{other}, int8"]["convolutions"] > 0
    assert both[f"{scope}, int8"]["kB"] == graphs[f"{scope}, int8"]["kB"]


def test_files_are_reported_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from export.__main__ import main as export

    out = folder / "dec.onnx"
    export(["--ckpt", str(folder / "c.safetensors"), "--part", "decoder", "--out", str(out), "--input_size", "64"])
    assert main(["--onnx", str(out), "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "| ORT CPU, int8 | " in said
    assert "4 ConvTranspose" in said
    assert "--deconv concat" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give either --ckpt FILE"),
        (["--onnx", "none.onnx"], "no such file"),
        (["--ckpt", "CKPT"], "trained without quantization"),
        (["--onnx", "CKPT"], "no ONNX model"),
        (["--onnx", "CKPT", "--images", "."], "need --ckpt"),
        (["--ckpt", "QAT", "--calib_dir", "PICTURES"], "leave --calib_dir out"),
        (["--ckpt", "none", "--json", "/none/r.json"], "--json /none/r.json: its folder does not exist"),
        (["--ckpt", "none", "--json", "PICTURES"], "cannot be written there"),
        (["--ckpt", "CKPT", "--calib_dir", "PICTURES", "--json", "CAT"], "the command reads this file too"),
        (["--ckpt", "CKPT", "--images", "PICTURES", "--json", "CAT"], "the command reads this file too"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, words: list[str], reason: str) -> None:
    places = {"CKPT": "c.safetensors", "QAT": "all.safetensors", "PICTURES": "pictures", "CAT": "pictures/cat.png"}
    with pytest.raises(InputError, match=reason):
        main([str(folder / places[word]) if word in places else word for word in words])


@pytest.mark.parametrize(
    ("kinds", "operator", "said"),
    [
        (["FLOAT", "FLOAT"], ("Relu", ""), "its inputs are FLOAT, FLOAT; a graph that is timed takes one"),
        (["INT64"], ("Relu", ""), "its inputs are INT64"),
        ([], ("Relu", ""), "its inputs are none"),
        (["FLOAT"], ("Own", "of.mine"), "it cannot be reported ("),
    ],
)
def test_a_strangers_graph_is_one_sentence(
    tmp_path: Path, kinds: list[str], operator: tuple[str, str], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        main(["--onnx", str(stranger(tmp_path / "x.onnx", kinds, operator)), "--rounds", "1"])
    assert said in str(refused.value)
    assert str(tmp_path / "x.onnx") in str(refused.value)


def test_an_input_of_gigabytes_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 268,435,456 values"):
        main(["--onnx", str(stranger(tmp_path / "x.onnx", ["FLOAT"], ("Relu", ""), 30_000))])


def test_names_of_a_graph_do_not_control_the_terminal() -> None:
    row = {"graph": "g", "operator": "\x1b[2J", "nodes": ["n"], "reason": "r", "remedy": ""}
    family = {"family": "f", "file": "x", "nodes": 1, "not taken": 1, "not stated": 0, "findings": [row]}
    assert "1 \\x1b[2J" in markdown({"families": [family], "graphs": []})


def stranger(path: Path, kinds: list[str], operator: tuple[str, str], side: int = 4) -> Path:
    """A graph of one operator."""
    import onnx
    from onnx import helper

    kind, domain = operator
    types = [getattr(onnx.TensorProto, each) for each in kinds]
    shape = [1, 3, side, side]
    inputs = [helper.make_tensor_value_info(f"x{i}", each, shape) for i, each in enumerate(types)]
    output = helper.make_tensor_value_info("y", types[0] if types else onnx.TensorProto.FLOAT, shape)
    constant = helper.make_tensor("x0", onnx.TensorProto.FLOAT, [1], [0.5])
    graph = helper.make_graph([helper.make_node(kind, ["x0"], ["y"], domain=domain)], "g", inputs, [output])
    if not types:
        graph.initializer.append(constant)
    opsets = [helper.make_opsetid(each, 13) for each in {"", domain}]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_figures_that_cannot_be_written_after_all_are_one_sentence() -> None:
    with pytest.raises(InputError, match=r"--json /proc/r\.json: .*nothing was written"):
        write_json("/proc/r.json", {})


def test_compilers_have_a_table() -> None:
    verdict = Verdict("decoder", "rk3566", "rknn 1", "2 operators are left for the CPU", {"ms": 2}, "bytes", {})
    off = {"equal, %": 99.5, "mean": 0.1, "largest": 1.0}
    other = Verdict("encoder", "bm1688", "mlir 2", "", {"ms": 1, "MB": 3}, "symbols", off)
    picture = Verdict("decoder", "bm1688", "mlir 2", "", {}, "bytes", off | {PSNR: 30.25, ORT_PSNR: 30.24})
    text = markdown({"families": [], "graphs": [], "compilers": [asdict(each) for each in (verdict, other, picture)]})
    assert "| rk3566 | rknn 1 | decoder | 2 operators are left for the CPU | ms 2 |  |" in text
    assert "| bm1688 | mlir 2 | encoder | all | ms 1, MB 3 | simulated: 99.5 % of the symbols equal" in text
    assert "99.5 % of the bytes equal ONNX Runtime's, off by 1 at most, 0.1 on average; PSNR 30.25 dB, ONNX" in text
