"""The wheel: what is in it, and that its commands work where only it is installed."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from programs import ROOT, environment

pytestmark = pytest.mark.slow

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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, since building leaves folders behind."""
    project = tmp_path_factory.mktemp("source") / "project"
    heavy = shutil.ignore_patterns(".*", "build", "*.egg-info", "checkpoints", "recon", "demo", "onnx", "wandb", "runs")
    shutil.copytree(ROOT, project, ignore=heavy)
    return project


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
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
    assert packages == {
        "codec",
        "coco224",
        "export",
        "training",
        "train_accel.py",
        "codec_demo.py",
        "codec_pipeline.py",
    }
    assert wheel.stat().st_size < 8 * 2**20
    for package in ("codec", "coco224", "export", "training"):
        assert f"{package}/py.typed" in names
    for path in (
        "codec/evaluation/report.html",
        "codec/hub/card.md",
        "codec/sample/gdn.safetensors",
        "export/device/src/nic.h",
    ):
        assert path in names
    for path in ("export/device/example/photograph.c", "export/web/src/index.html", "export/web/src/c/memory.c"):
        assert path in names
    shared = {name.partition("/share/npu-image-codec/")[2] for name in names if "/share/" in name}
    for folder in ("recipes", "accelerate_configs"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert files <= shared
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_distribution_holds_what_a_reader_needs_and_no_tests(source: Path, tmp_path: Path) -> None:
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").iterdir()}
    beside = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.ja.md", "constraints.txt"}
    assert (
        pages
        | beside
        | {"constraints-npu/rockchip.txt", "train_accel.py", "codec/evaluation/report.html", "recipes/relu_rd.yaml"}
        <= names
    )
    assert not [name for name in names if name.startswith("tests/")]


def test_what_the_packages_import_is_declared() -> None:
    folders = ("codec", "coco224", "training")
    files = [ROOT / "train_accel.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    modules = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        modules |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        modules |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
    ours = {"codec", "coco224", "export", "training", "train_accel"}
    outside = {name.partition(".")[0] for name in modules} - ours - sys.stdlib_module_names
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["wandb"]
    declared = {named(re.split(r"[<>=;]", line)[0]) for line in lines}
    packages = packages_distributions()
    assert [name for name in sorted(outside) if not {*map(named, packages.get(name, ()))} & declared] == []


def named(distribution: str) -> str:
    """A distribution's name as all its spellings have it."""
    return distribution.replace("_", "-").lower()


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
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert sections[1].startswith(f"{PROJECT['version']} - ")
