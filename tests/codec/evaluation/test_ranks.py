"""Processes that share an evaluation, or a run, are compared before they wait for each other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.utils
import pytest
from PIL import Image

import training.agreement
from codec.errors import InputError
from codec.evaluate import facts, parse
from codec.evaluation.pictures import open_pictures
from codec.evaluation.ranks import check_agreement
from codec.sample import to_use
from training.options import parse as parse_training


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """folders(name, *pictures): a folder of small pictures."""

    def folder(name: str, *pictures: str) -> Path:
        (tmp_path / name).mkdir()
        for each in pictures:
            Image.new("RGB", (16, 16)).save(tmp_path / name / each)
        return tmp_path / name

    return folder


def of_a_process(images: Path, *more: object) -> dict[str, Any]:
    words = ["--images", images, "--checkpoint", "sample", *more]
    options, checkpoints, references = parse([str(word) for word in words])
    return facts(options, checkpoints, references, open_pictures(options.images, None, True, 16))


def refusal(monkeypatch: pytest.MonkeyPatch, mine: dict[str, Any], other: dict[str, Any]) -> str:
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda given: [*given, other])
    with pytest.raises(InputError) as refused:
        check_agreement(mine, 2)
    return str(refused.value)


def test_an_evaluation_that_differs_is_refused_by_name(
    folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folders("a", "1.png", "2.png")
    mine = of_a_process(images)
    said = refusal(monkeypatch, mine, of_a_process(images, "--rates", 5, "--batch_size", 3))
    assert said.startswith("processes 0 and 1 differ in --batch_size 16 and 3; --rates None and 5: ")
    assert "the names of the pictures" in refusal(monkeypatch, mine, of_a_process(folders("b", "1.png", "3.png")))
    assert "the names of the pictures" in refusal(monkeypatch, mine, of_a_process(folders("c", "1.png")))
    assert "the files of --reference" in refusal(monkeypatch, mine, of_a_process(images, "--reference", "jpeg"))
    assert "PyTorch" not in refusal(monkeypatch, mine, mine | {"the number": 2})
    assert "PyTorch" in refusal(monkeypatch, mine, mine | {"PyTorch": "1.0"})
    (tmp_path / "mine.py").touch()
    assert "the files of --plugin" in refusal(monkeypatch, mine, of_a_process(images, "--plugin", tmp_path / "mine.py"))


def test_other_pictures_under_equal_names_are_refused(
    folders: Callable[..., Path], coco224: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = folders("a", "1.png"), folders("b", "1.png")
    Image.new("RGB", (16, 16), "red").save(other / "1.png")
    assert "the content of the pictures" in refusal(monkeypatch, of_a_process(mine), of_a_process(other))
    for folder in (mine, other):
        (folder / "1.png").unlink()
        (folder / "1.png").symlink_to("nowhere")  # the evaluation says so
    assert of_a_process(mine) == of_a_process(other)
    rows = open_pictures(None, str(coco224), True, 16)
    options, *more = parse(["--coco_dir", str(coco224), "--checkpoint", "sample"])
    ours = facts(options, *more, rows)
    theirs = facts(options, *more, replace(rows, fingerprint="other"))
    assert "the content of the pictures" in refusal(monkeypatch, ours, theirs)


def test_another_program_is_refused(folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    images = folders("a", "1.png")
    mine, read = of_a_process(images), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "density.py"))
    assert "the program's code" in refusal(monkeypatch, mine, of_a_process(images))


def test_the_same_files_in_other_folders_are_the_same(
    folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy.safetensors").write_bytes(to_use("sample").read_bytes())
    mine = of_a_process(folders("a", "1.png"))
    other = of_a_process(folders("b", "1.png"), "--checkpoint", tmp_path / "copy.safetensors")
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda given: [*given, other])
    check_agreement(mine, 2)


def test_the_program_of_a_run_includes_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse_training(["--coco_dir", "x"])
    before = training.agreement.facts(options, {})
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "train_accel.py"))
    assert "the program's code" in refusal(monkeypatch, before, training.agreement.facts(options, {}))
