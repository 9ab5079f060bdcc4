"""Which devices the tests see: CPUs, unless `pytest -m gpu` asks for GPUs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize(
    ("expression", "hides"),
    [("", True), ("not slow", True), ("not gpu", True), ("gpu", False), ("gpu and slow", False)],
)
def test_gpus_are_hidden_unless_the_mark_asks_for_them(
    expression: str, hides: bool, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    assert conftest
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    conftest.pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=expression)))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if hides else "0")


def test_this_suite_sees_no_gpu() -> None:
    """It has no mark, so it runs only where GPUs are hidden; tests start processes with the same variables."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
