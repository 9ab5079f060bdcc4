"""What the benchmarks say is what they measured, and the pages repeat it."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks import front, harness
from benchmarks import table as page
from benchmarks.harness import Row, alternate, commit, machine, publish, table


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    medians = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert medians.keys() == {"a", "b"}


@pytest.mark.gpu
def test_a_side_lasts_until_the_gpu_has_done_its_work(gpu: torch.device) -> None:
    a = torch.randn(8192, 8192, device=gpu)
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


@pytest.mark.slow
def test_a_commit_says_whether_the_code_was_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(harness, "ROOT", tmp_path)
    assert commit() == "unknown"
    kept = [tmp_path / name for name in ("step.py", "README.md", "docs/benchmarks.md", "benchmarks/results/step.json")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("as it is kept")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit()
    assert len(clean) == 12
    for path in kept[1:]:  # which a benchmark before this one wrote
        path.write_text("measured anew")
    assert commit() == clean
    (tmp_path / "forms.py").write_text("not added yet")
    assert commit() == f"{clean}+"
    (tmp_path / "forms.py").unlink()
    kept[0].write_text("changed")
    assert commit() == f"{clean}+"


def test_a_result_names_machine_commit_and_command_but_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["curves.py", "--coco_dir", "/somebody/s/coco2017/"])
    publish("curves", [Row("ratio", 1.0, "x")], {"dataset": "coco2017"})
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["command"] == "python -m benchmarks.curves --coco_dir coco2017"
    assert result["machine"]["commit"] == commit()
    assert result["dataset"] == "coco2017"
    assert "somebody" not in path.read_text()


def test_a_result_of_code_that_no_commit_holds_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "HEADLINE", {"speed": ("step", "pictures")})
    monkeypatch.setattr(front, "RESULTS", tmp_path)
    for name, at in (("data", "0123456789ab+"), ("step", "0123456789ab")):
        versions = {"torch": "2", "onnxruntime": "1"}
        where = {"gpu": "", "cpu": "a chip", "cores": 2, "versions": versions, "commit": at, "date": "today"}
        rows = [{"what": f"pictures of {name}", "value": 1, "unit": "x"}]
        result = {"machine": where, "command": f"python -m benchmarks.{name}", "rows": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = page.rendered()
    assert "`python -m benchmarks.step` at commit 0123456789ab, today; a chip, 2 cores; torch 2, onnxruntime 1." in text
    assert "| speed | 1 x | [Training: speed and memory](#training-speed-and-memory) |" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if "of data" in line] == []
    assert text.endswith("## Not shown\n\n`benchmarks/results/data.json`: measured with code that no commit holds.\n")
