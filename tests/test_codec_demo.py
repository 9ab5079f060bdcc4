"""The demo: its commands run, and the table and the page are there."""

from pathlib import Path

import pytest
from programs import run

import codec_demo
from codec.errors import InputError

pytestmark = pytest.mark.slow


def test_it_goes_from_gdn_to_int8_files(tmp_path: Path) -> None:
    few = ("--distill_steps", 1, "--steps", 1, "--int8_steps", 4)
    done = run("-m", "codec_demo", "--out_dir", tmp_path / "demo", *few)
    assert done.returncode == 0, done.stderr
    screen = done.stdout[done.stdout.index("astronaut.png, files of at most") :]
    for row in ("GDN, float", "gate_mlp, float", "gate_mlp, int8", "JPEG", "Arm Ethos-U (Vela)"):
        assert row in screen
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    assert {path.name for path in (tmp_path / "demo" / "onnx").glob("*.onnx")} >= {"encoder.onnx", "decoder.onnx"}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        codec_demo.main(["--out_dir", str(tmp_path)])
