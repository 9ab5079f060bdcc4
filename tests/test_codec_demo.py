"""The demo: its commands are those of the notebook, which another test runs; and what it does around them."""

import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from programs import ROOT

import codec_demo
from codec.errors import InputError
from codec_demo import CROPS, DemoOptions, commands, photograph


def test_its_commands_are_those_of_the_notebook() -> None:
    options = DemoOptions()
    numbers = {name: getattr(options, name) for name in ("distill_steps", "steps", "int8_steps")}
    found = [
        words
        for cell in nbformat.read(ROOT / "docs" / "tour.ipynb", 4).cells
        if cell.source.startswith("%%bash")
        for words in commands_of(cell.source, numbers | {"crops": CROPS, "photograph": photograph})
    ]
    given = [words for _, words in commands(options, Path("tour"))]
    assert sorted(found) == sorted(given)


def commands_of(cell: str, names: dict[str, Any]) -> list[list[str]]:
    """The commands of a bash cell, without `python -m`; its first line gives the script's arguments in braces."""
    first, script = cell.split("\n", 1)
    for number, each in enumerate(re.findall(r"{(.*?)}", first), 1):
        script = script.replace(f"${number}", str(eval(each, {}, names)))
    lines = script.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines]


def test_it_runs_the_commands_and_says_where_the_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, shown = [], []
    monkeypatch.setattr(codec_demo, "execute", lambda words: ran.append(words) or 0)
    monkeypatch.setattr(codec_demo, "show", lambda *given: shown.append(given))
    folder = tmp_path / "demo"
    assert codec_demo.main(["--out_dir", str(folder), "--target_bpp", "0.5"]) == 0
    assert [words[2:] for words in ran] == [words for _, words in commands(DemoOptions(), folder)]
    assert shown == [(folder, 0.5)]
    assert f"the page:  {folder / 'report.html'}" in capsys.readouterr().out


def test_a_command_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec_demo, "execute", lambda words: 137)
    assert codec_demo.main(["--out_dir", str(tmp_path / "demo")]) == 137
    assert capsys.readouterr().err == "coco224.prepare ended with status 137\n"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        codec_demo.main(["--out_dir", str(tmp_path)])
