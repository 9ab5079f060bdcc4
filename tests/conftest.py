"""Photographs and datasets that the tests share: real ones, from the scikit-image wheel. And the device of a test."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Hub, point_at
from huggingface_hub.utils import close_session
from PIL import Image
from programs import run

from codec.blocks import registry

SLOW = {"chromium", "coco224", "command", "hub", "installed", "real_coco", "small_disk", "source", "wheel"}
"""Fixtures that start processes, servers, browsers or builds: a test with one of them is slow."""

LONGEST = (
    *("test_tour.py", "test_compile.py", "test_batch_scripts.py", "test_qat.py", "test_docs.py", "test_gpu.py"),
    *("test_kills.py", "test_fsdp.py", "test_launchers.py", "test_distributed.py"),
)
"""Files that begin first, so that two processes that take whole files from a queue end together."""


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from the tests and their processes: exact results are a CPU's. `pytest -m gpu` shows them.

    One thread, also without the Makefile's OMP_NUM_THREADS: a process that forks while OpenMP has threads may hang.
    """
    torch.set_num_threads(1)
    if not _of_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _of_gpus(config: pytest.Config) -> bool:
    return str(config.option.markexpr).startswith("gpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks as slow what `make check` leaves out; a test that starts a process of its own says so itself."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if item.get_closest_marker("gpu") and not _of_gpus(config):
            item.add_marker(pytest.mark.skip(reason="tests of GPUs run with: pytest -m gpu"))
        if item.get_closest_marker("pages") and "pages" not in str(config.option.markexpr):
            item.add_marker(pytest.mark.skip(reason="pages with the other architectures run with: pytest -m pages"))
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU of a test that is marked `gpu`; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of scikit-image's photographs: astronaut.png, chelsea.png, coffee.png, rocket.jpg and others."""
    spec = importlib.util.find_spec("skimage")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="session")
def picture(photographs: Path) -> torch.Tensor:
    """The astronaut, float [1, 3, 512, 512] in [0, 1]."""
    pixels = np.array(Image.open(photographs / "astronaut.png"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def coco224(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded photographs as a dataset, made by the command: 54 training rows, 4 of validation."""
    out = tmp_path_factory.mktemp("data") / "coco224"
    done = run("-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser that resolves no name, so that whatever a page asked of a network would fail and be logged."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no Chromium: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars",
                     "disable-background-networking", "no-first-run", "force-color-profile=srgb",
                     "window-size=1280,1000", "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # fmt: skip
        options.add_argument(f"--{argument}")
    browser = Chrome(options, ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


@pytest.fixture(autouse=True)
def own_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and plugins that a test registers are forgotten after it."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))


@pytest.fixture(autouse=True)
def own_graphs() -> Iterator[None]:
    """What a test compiled is forgotten after it: torch compiles a function anew a few times only, then it refuses."""
    yield
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch._dynamo.reset()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 18 MB; skips where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", disk]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    # Lazily: what was loaded from it may still be mapped.
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, on which this machine is logged in, and an empty cache."""
    with Hub() as server:
        point_at(server, tmp_path / "hf", monkeypatch)
        yield server
    close_session()
