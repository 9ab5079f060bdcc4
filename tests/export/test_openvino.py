"""The runtime with OpenVINO, in the environment of `make npu CHIP=intel`, which has neither ONNX Runtime nor torch."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from codecs_for_export import in_int8, make
from PIL import Image
from programs import ROOT, environment, run

from codec.bitstream.container import unpack
from codec.bitstream.tables import to_bytes
from codec.network.tables import tables_of
from export.chips.compilers import COMPILERS, python_of
from export.graph.build import build, parts_of, write_all
from export.graph.rewrite import Deconv
from export.pictures import sample_picture
from export.runtime import Model, decode

pytestmark = pytest.mark.slow

PYTHON = python_of(COMPILERS["intel"], ROOT / ".venv-npu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 encoder with h_a, and decoders, each for any size, and a photograph."""
    if not PYTHON.exists():
        pytest.skip("OpenVINO is not installed: make npu CHIP=intel")
    folder, x = tmp_path_factory.mktemp("openvino"), sample_picture(96)
    codec = make("relu", arch="bmshj2018_hyperprior")
    int8, tables = in_int8(codec, x), tables_of(codec)

    def export(part: str, deconv: Deconv) -> None:
        graphs = {
            each: build(int8, each, deconv, x, dynamic=True, fingerprint=tables.fingerprint)
            for each in parts_of(int8, part)
        }
        write_all(folder / f"{part}-{deconv}.onnx", graphs, to_bytes(tables))

    for part, deconv in (("encoder", "concat"), ("decoder", "depth_to_space"), ("decoder", "concat")):
        export(part, deconv)
    Image.fromarray((x[0, :, :80, :70] * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / "photo.png")
    return folder


def with_openvino(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in OpenVINO's environment, which sees our packages and no other of this one's."""
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for name in ("export", "codec", "coco224"):
        if not (packages / name).exists():
            (packages / name).symlink_to(ROOT / name)
    command = [str(PYTHON), "-m", "export.runtime", *words, "--backend", "openvino"]
    env = os.environ | environment() | {"PYTHONPATH": str(packages)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_it_writes_and_reads_the_files_of_onnx_runtime(models: Path) -> None:
    words = ("encode", "photo.png", "openvino.bin", "--model", "encoder-concat.onnx")
    done = with_openvino(models, *words)
    assert done.returncode == 0, done.stderr
    done = run(
        *("-m", "export.runtime", "encode", models / "photo.png", models / "ours.bin"),
        *("--model", models / "encoder-concat.onnx"),
    )
    assert done.returncode == 0, done.stderr
    decoder = Model(models / "decoder-depth_to_space.onnx", "decoder")
    theirs, ours = (unpack((models / f"{name}.bin").read_bytes(), decoder.coder)[2] for name in ("openvino", "ours"))
    assert (theirs == ours).mean() > 0.99
    assert np.abs(theirs - ours).max() <= 1
    done = with_openvino(models, "decode", "openvino.bin", "out.png", "--model", "decoder-depth_to_space.onnx")
    assert done.returncode == 0, done.stderr
    off = np.abs(
        np.array(Image.open(models / "out.png")).astype(int) - decode((models / "openvino.bin").read_bytes(), decoder)
    )
    assert (off == 0).mean() > 0.98
    assert off.max() <= 4


def test_a_form_that_it_would_round_otherwise_is_refused(models: Path) -> None:
    (models / "x.bin").write_bytes(b"")
    done = with_openvino(models, "decode", "x.bin", "out.png", "--model", "decoder-concat.onnx")
    assert done.returncode == 2
    assert "export it with --deconv depth_to_space" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_it_the_option_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "x.bin").write_bytes(b"")
    words = ("decode", tmp_path / "x.bin", tmp_path / "x.png", "--model", tmp_path / "m.onnx", "--backend", "openvino")
    done = run("-m", "export.runtime", *words)
    assert done.returncode == 2
    assert "'.[openvino]'" in done.stderr or "OpenVINO does not open it" in done.stderr
