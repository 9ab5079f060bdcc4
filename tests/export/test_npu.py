"""The compilers' command. Its runs need the environment that `make npu` makes."""

import json
import subprocess
from pathlib import Path

import pytest
from codecs_for_export import make, save, trained
from programs import ROOT, environment, run

from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.quantization.calibrate import calibrate
from export import npu
from export.npu import main
from export.pictures import sample_picture

pytestmark = pytest.mark.slow

PYTHON = ROOT / ".venv-npu" / "bin" / "python"
needs_compilers = pytest.mark.skipif(not PYTHON.exists(), reason="the NPU compilers are not installed: make npu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A small ReLU codec, one with GDN, and a folder with photographs to calibrate on."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("npu")
    for act in ("relu", "gdn"):
        save(make(act, N=16, M=16), folder / f"{act}.safetensors")
    for scope in ("encoder", "decoder", "all"):
        save(trained("relu", scope, sample_picture(64), N=16), folder / f"{scope}.safetensors")
    (folder / "pictures").mkdir()
    with Image.open(photographs / "chelsea.png") as cat:
        cat.save(folder / "pictures" / "cat.png")
    return folder


def compile_for(target: str, folder: Path, act: str = "relu", *more: object) -> subprocess.CompletedProcess[str]:
    checkpoint = ("--ckpt", folder / f"{act}.safetensors", "--calib_dir", folder / "pictures")
    words = [PYTHON, "-m", "export.npu", "--target", target, *checkpoint, "--input_size", 64, *more]
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ckpt", "c.safetensors"], "--target is required"),
        (["--ckpt", "c.safetensors", "--target", "tpu"], "invalid choice: 'tpu'"),
        (["--ckpt", "c.safetensors", "--target", "qualcomm-htp", "--sram_kib", "512"], "--sram_kib is for Ethos-U"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--input_size", "100"], "must be a multiple of 16"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--json", "/none/v.json"], "folder does not exist"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--json", "/tmp"], "cannot be written there"),
    ],
)
def test_bad_options_are_one_sentence(words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        main(words)


@pytest.mark.parametrize("target", ["ethos-u55-256", "qualcomm-htp"])
def test_a_missing_compiler_is_one_line_with_the_command(target: str) -> None:
    done = run("-m", "export.npu", "--ckpt", "c.safetensors", "--target", target)
    assert done.returncode == 2
    assert "make npu" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that reached the compiler with symbols for their latent; the compiler itself is left out."""
    seen: list[str] = []

    def compiler(codec, part, options, folder) -> npu.Verdict:
        transform = {"encoder": "g_a", "decoder": "g_s"}.get(part, part)
        assert codec.has_symbols(transform) or codec.has_levels(transform)
        seen.append(part)
        return npu.Verdict(part, options.target, "", {})

    monkeypatch.setattr(npu, "require", lambda target: None)
    monkeypatch.setattr(npu, "ethos_u", compiler)
    return seen


@pytest.mark.parametrize("scope", ["encoder", "decoder"])
def test_a_checkpoint_of_one_quantized_transform_is_compiled_whole(
    scope: str, folder: Path, compiled: list[str]
) -> None:
    words = ["--target", "ethos-u55-256", "--input_size", "64", "--ckpt", str(folder / f"{scope}.safetensors")]
    calibration = ["--calib_dir", str(folder / "pictures")]
    assert main([*words, *calibration]) == 0
    assert compiled == ["encoder", "decoder"]
    assert main([*words, "--part", scope]) == 0
    assert compiled.pop() == scope
    other = "decoder" if scope == "encoder" else "encoder"
    with pytest.raises(InputError, match=f"without quantization of the {other}; give --calib_dir"):
        main(words)
    with pytest.raises(InputError, match="leave --calib_dir out"):
        main([*words, "--part", scope, *calibration])
    assert len(compiled) == 2, "something was compiled before the refusal"


def test_ranges_of_training_leave_nothing_to_calibrate(folder: Path, compiled: list[str]) -> None:
    words = ["--target", "ethos-u55-256", "--input_size", "64", "--ckpt", str(folder / "all.safetensors")]
    assert main(words) == 0
    with pytest.raises(InputError, match="leave --calib_dir out"):
        main([*words, "--calib_dir", str(folder / "pictures")])
    with pytest.raises(InputError, match="name another folder"):
        main([*words, "--out", str(folder / "all.safetensors")])


@pytest.mark.parametrize("arch", ["bmshj2018_hyperprior", "mbt2018_mean"])
def test_h_a_is_compiled_with_the_encoder(
    arch: str, folder: Path, compiled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, codec = sample_picture(64), make("relu", arch=arch)
    save(codec, tmp_path / "float.safetensors")
    save(calibrate(codec, [x], Quantization("encoder")), tmp_path / "encoder.safetensors")
    words = ["--target", "ethos-u55-256", "--input_size", "64", "--part", "encoder", "--ckpt"]
    assert main([*words, str(tmp_path / "encoder.safetensors")]) == 0
    assert compiled == ["encoder"]
    assert "h_a stays in float, on the host" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "float.safetensors"), "--calib_dir", str(folder / "pictures")]) == 0
    assert compiled == ["encoder", "encoder", "h_a"]


@needs_compilers
def test_vela_takes_the_relu_codec_whole_with_our_ranges(folder: Path) -> None:
    done = compile_for("ethos-u65-512", folder, "relu", "--json", folder / "v.json", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| all on the chip") == 2
    for verdict in json.loads((folder / "v.json").read_text()):
        assert verdict["figures"]["CPU operators"] == 0
        assert verdict["figures"]["ms"] > 0
        part = verdict["part"]
        assert len(list((folder / "out" / part / "ethos-u65-512").glob("*/*_vela.tflite"))) == 2
    # The very integers of the ONNX file: the TFLite interpreter against the fake-quantized module.
    program = (
        f"import sys; sys.path.insert(0, 'tests/export'); import tflite_against_torch as t; t.compare({str(folder)!r})"
    )
    compared = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr


@needs_compilers
def test_vela_takes_a_trained_encoder_and_a_calibrated_decoder_whole(folder: Path) -> None:
    done = compile_for("ethos-u65-512", folder, "encoder")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| all on the chip") == 2


@needs_compilers
def test_an_operator_on_the_cpu_fails_the_command(folder: Path) -> None:
    done = compile_for("ethos-u55-256", folder, "gdn", "--part", "decoder")
    assert done.returncode == 2
    assert "operators are left for the CPU" in done.stderr
    assert "NOT all on the chip" in done.stdout


@needs_compilers
def test_feature_maps_that_do_not_fit_fail_the_command(folder: Path) -> None:
    done = compile_for("ethos-u55-256", folder, "relu", "--part", "decoder", "--sram_kib", 16)
    assert done.returncode == 2
    assert "KiB of SRAM, and the chip has 16" in done.stderr


@needs_compilers
def test_qualcomm_takes_the_relu_codec_whole(folder: Path) -> None:
    done = compile_for("qualcomm-htp", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| all on the chip") == 2
