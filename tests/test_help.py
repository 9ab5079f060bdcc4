"""Every program's --help comes at once: what is heavy to import waits until the options are known to be good."""

import subprocess
import sys

import pytest
from programs import ROOT

pytestmark = pytest.mark.slow

HEAVY = {
    "accelerate",
    "compressai",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "scipy",
}
PROGRAMS = (
    "coco224.prepare",
    "codec.evaluate",
    "codec.compress",
    "codec.decompress",
    "codec.push",
    "export",
    "export.device",
    "export.npu",
    "export.web",
    "codec_pipeline",
)


def imported(*words: str) -> set[str]:
    """The modules that a command imports."""
    command = [sys.executable, "-X", "importtime", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "usage:" in done.stdout
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_torch(program: str) -> None:
    assert not imported("-m", program) & (HEAVY | {"torch"})


def test_help_of_training_needs_torch_alone() -> None:
    """Its options are those of the blocks too, which are torch modules."""
    assert not imported("train_accel.py") & HEAVY
