"""The wheel: what is in it, and that its commands work where only it is installed."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from programs import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    heavy = shutil.ignore_patterns(".*", "build", "*.egg-info", "checkpoints", "recon", "demo", "onnx", "wandb", "runs")
    shutil.copytree(ROOT, source, ignore=heavy)
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-w", out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and beside it what this one has."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    (packages,) = root.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", root / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return root / "bin"


def test_the_wheel_holds_the_packages_and_what_a_run_needs_beside_them(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info" not in name and ".data" not in name}
    assert packages == {"codec", "coco224", "export", "training", "train_accel.py"}
    for package in ("codec", "coco224", "export", "training"):
        assert f"{package}/py.typed" in names
    assert "codec/report.html" in names
    shared = {name.partition("/share/npu-image-codec/")[2] for name in names if "/share/" in name}
    for folder in ("recipes", "accelerate_configs"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert files <= shared
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_a_command_works(installed: Path, command: str, tmp_path: Path) -> None:
    """Its help names no option that `python -m` lacks, and bad input is one line and status 2."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / command, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )

    wrong = run("--no_such_option")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1


def test_an_installed_recipe_is_found_from_anywhere(installed: Path, tmp_path: Path) -> None:
    program = (
        "from training.options import parse; print(parse(['--config', 'recipes/relu_rd.yaml', '--coco_dir', 'x']).loss)"
    )
    done = subprocess.run(
        [installed / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "loss_type='rd'" in done.stdout, done.stderr


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
