"""The compilers' command. Its runs need the environments that `make npu CHIP=NAME` makes."""

import json
import subprocess
from pathlib import Path

import pytest
from codecs_for_export import make, save, trained
from programs import ROOT, run

from coco224.errors import DataError
from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.quantization.calibrate import calibrate
from export import npu
from export.chips import judge
from export.chips.compilers import COMPILERS, python_of
from export.npu import main
from export.pictures import sample_picture

pytestmark = pytest.mark.slow

LARGEST = {"qualcomm": 8, "rockchip": 8}
"""Largest difference of an 8-bit value to ONNX Runtime's: these two round otherwise in every layer."""


def need(chip: str) -> None:
    """Skips the test if this compiler is not installed."""
    if not python_of(COMPILERS[chip], ROOT / ".venv-npu").exists():
        pytest.skip(f"this compiler is not installed: make npu CHIP={chip}")


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
    return run("-m", "export.npu", "--target", target, *checkpoint, "--input_size", 64, *more)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ckpt", "c.safetensors"], "--target is required"),
        (["--ckpt", "c.safetensors", "--target", "tpu"], "invalid choice: 'tpu'"),
        (["--ckpt", "c.safetensors", "--target", "rk3588,tpu"], "invalid choice: 'tpu'"),
        (["--ckpt", "c.safetensors", "--target", "all", "--compilers", "/none"], "/none has no compiler"),
        (["--ckpt", "c.safetensors", "--target", "qualcomm-htp", "--sram_kib", "512"], "--sram_kib is for Ethos-U"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--input_size", "100"], "must be a multiple of 16"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--json", "/none/v.json"], "folder does not exist"),
        (["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--json", "/tmp"], "cannot be written there"),
    ],
)
def test_bad_options_are_one_sentence(words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        main(words)


def test_no_output_replaces_a_photograph(folder: Path) -> None:
    words = ["--ckpt", "c.safetensors", "--target", "ethos-u55-256", "--calib_dir", str(folder / "pictures")]
    with pytest.raises(InputError, match="the command reads this file too"):
        main([*words, "--json", str(folder / "pictures" / "cat.png")])


def test_a_missing_compiler_is_one_line_with_the_command(tmp_path: Path) -> None:
    words = ("--target", "ethos-u55-256,bm1688", "--compilers", tmp_path)
    done = run("-m", "export.npu", "--ckpt", "c.safetensors", *words)
    assert done.returncode == 2
    assert "make npu CHIP=arm" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that reached the compiler with symbols for their latent; the compiler itself is left out."""
    seen: list[str] = []

    def ask(compiler, job, part, python) -> judge.Verdict:
        transform = {"encoder": "g_a", "decoder": "g_s"}.get(part.name, part.name)
        assert part.codec.has_symbols(transform) or part.codec.has_levels(transform)
        seen.append(part.name)
        return judge.Verdict(part.name, job.target, "none", "", {}, part.values, {})

    monkeypatch.setattr(npu, "require", lambda targets, environments: None)
    monkeypatch.setattr(judge, "ask", ask)
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
    with pytest.raises(DataError, match="name another folder"):
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


@pytest.mark.parametrize("chip", list(COMPILERS))
def test_every_compiler_takes_the_relu_codec_whole_with_its_ranges(chip: str, folder: Path, tmp_path: Path) -> None:
    need(chip)
    target = COMPILERS[chip].targets[0]
    done = compile_for(target, folder, "relu", "--json", tmp_path / "v.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": all on the chip |") == 2
    for verdict in json.loads((tmp_path / "v.json").read_text()):
        assert verdict["tool"].startswith(COMPILERS[chip].package)
        assert verdict["figures"].get("CPU operators", 0) == 0
        assert verdict["difference"].get("largest", 0) <= LARGEST.get(chip, 1)
        # Both compute the very integers of the ONNX file.
        assert chip not in ("arm", "sophgo") or verdict["difference"]["equal, %"] > 99
        assert (tmp_path / "out" / target / verdict["part"] / "log.txt").exists()


def test_h_a_is_compiled_too(folder: Path, tmp_path: Path) -> None:
    need("rockchip")
    save(make("relu", arch="bmshj2018_hyperprior"), folder / "hyper.safetensors")
    done = compile_for("rk3588", folder, "hyper", "--part", "encoder")
    assert done.returncode == 0, done.stderr
    assert "h_a, 64x64, rk3588 by rknn-toolkit2" in done.stdout


def test_vela_takes_a_trained_encoder_and_a_calibrated_decoder_whole(folder: Path) -> None:
    need("arm")
    done = compile_for("ethos-u65-512", folder, "encoder")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": all on the chip |") == 2


def test_an_operator_on_the_cpu_fails_the_command(folder: Path) -> None:
    need("arm")
    done = compile_for("ethos-u55-256", folder, "gdn", "--part", "decoder")
    assert done.returncode == 2
    assert "operators are left for the CPU" in done.stderr
    assert "NOT all on the chip" in done.stdout


def test_feature_maps_that_do_not_fit_fail_the_command(folder: Path) -> None:
    need("arm")
    done = compile_for("ethos-u55-256", folder, "relu", "--part", "decoder", "--sram_kib", 16)
    assert done.returncode == 2
    assert "KiB of SRAM, and the chip has 16" in done.stderr


def test_intels_npu_says_in_one_line_what_is_missing(folder: Path) -> None:
    need("intel")
    done = compile_for("intel-npu", folder, "relu", "--part", "encoder")
    if done.returncode == 0:
        pytest.skip("this machine has the compiler of Intel's NPU")
    assert "intel-npu, encoder: the compiler refuses it: Cannot load library" in done.stderr
    assert done.stderr.count("\n") == 1
