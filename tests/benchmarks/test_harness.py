"""What the benchmarks say is what they measured, and the README repeats it."""

import time

import pytest
import torch

from benchmarks.harness import Row, alternate, machine, table
from benchmarks.table import END, README, START, rendered


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    medians = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert medians.keys() == {"a", "b"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_side_lasts_until_the_gpu_has_done_its_work() -> None:
    a = torch.randn(8192, 8192, device="cuda")
    (a @ a).sum().item()
    start = time.perf_counter()
    (a @ a).sum().item()
    whole = time.perf_counter() - start
    assert alternate({"product": lambda: a @ a}, rounds=3)["product"] > whole / 2


def test_a_bar_is_met_from_either_side() -> None:
    assert Row("ratio", 3.6, "x", at_least=3.5).met
    assert not Row("ratio", 3.4, "x", at_least=3.5).met
    assert Row("memory", 0.9, "x", at_most=1.0).met
    assert not Row("memory", 1.1, "x", at_most=1.0).met
    assert not Row("crashes", 1, "", at_most=0).met
    assert Row("crashes", 0, "", at_most=0).met
    assert Row("a figure", 1.0, "s").met is None
    line = table([Row("memory", 1.1, "x", at_most=1.0, sides={"ours, MB": 11}, note="why")]).splitlines()[-1]
    assert line == "| memory | 1.1 x | ≤ 1 ✗ | ours, MB 11; why |"


def test_the_machine_is_named() -> None:
    where = machine()
    assert where["cpu"]
    assert where["cores"] >= 1
    assert where["versions"]["torch"]


def test_the_readme_s_figures_are_those_of_the_results() -> None:
    kept = README.read_text().partition(START)[2].partition(END)[0]
    assert kept.strip() == rendered().strip()
