"""The example that ties the coder in C to ONNX Runtime's C API: a photograph to a file and back without Python."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from codecs_for_export import exported
from PIL import Image

from codec.targets import TargetOptions
from export.device.compiling import CODER, SOURCES, compile_files
from export.runtime import Model, decode, encode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler cc"),
]

EXAMPLE = SOURCES.parent / "example"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, linked with the library of the wheel of ONNX Runtime."""
    folder = tmp_path_factory.mktemp("example")
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"))
    if not found:
        pytest.skip("this wheel of onnxruntime holds no libonnxruntime.so")
    library = folder / "libonnxruntime.so.1"
    library.symlink_to(found[0])
    flags = ["-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", str(library), f"-Wl,-rpath,{folder}"]
    compile_files([str(EXAMPLE / "photograph.c"), *CODER], folder / "photograph", flags)
    return folder / "photograph"


@pytest.mark.parametrize(
    ("arch", "precision", "rates"), [("bmshj2018_factorized", "float", 1), ("mbt2018_mean", "int8", 3)]
)
def test_a_photograph_goes_in_and_the_python_side_s_file_comes_out(
    arch: str, precision: str, rates: int, program: Path, picture: torch.Tensor, tmp_path: Path
) -> None:
    encoder, decoder = exported(tmp_path, "", arch, precision, rates, picture)
    pixels = (picture[0, :, 40:235, 100:343] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")

    def photograph(*words: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([program, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = photograph("encode", "photo.ppm", "photo.bin", "encoder.onnx")
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "photo.bin").read_bytes()
    assert data == encode(pixels, Model(encoder, "encoder"))
    if rates > 1:
        assert photograph("encode", "photo.ppm", "low.bin", "encoder.onnx", "0").returncode == 0
        lowest = encode(pixels, Model(encoder, "encoder"), TargetOptions(rate=0.0))
        assert (tmp_path / "low.bin").read_bytes() == lowest
    assert photograph("decode", "photo.bin", "decoded.ppm", "decoder.onnx").returncode == 0
    decoded = np.array(Image.open(tmp_path / "decoded.ppm"))
    assert np.array_equal(decoded, decode(data, Model(decoder, "decoder")))
    for words in (
        ("decode", "photo.ppm", "x", "decoder.onnx"),
        ("encode", "photo.bin", "x", "encoder.onnx"),
        ("encode",),
    ):
        refused = photograph(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.startswith("error: ")
