"""A damaged checkpoint is refused in one line, or the one before it is used; never wrong weights, never a crash."""

import json
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import TINY, into, same, states, train
from safetensors.torch import load_file, save_file

from coco224.files import checksum
from codec.checkpoint import load_codec
from codec.errors import InputError
from training.state import FILES, load_state, newest_whole, restore_states

pytestmark = pytest.mark.slow

DAMAGES = 200


@pytest.fixture(scope="module")
def run_folder(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of 4 steps left: states of steps 2 and 4, and last.safetensors."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--coco_dir", coco224, *TINY, *into(folder), "--max_steps", 4, "--checkpoint_every", 2]
    assert train(*words) == 0
    return folder


def damaged(content: bytes, dice: random.Random) -> bytes:
    """One byte changed, anywhere or among the first kilobyte's (where headers are), or the end cut off."""
    if not dice.randrange(3):
        return content[: dice.randrange(len(content))]
    place = dice.randrange(len(content) if dice.randrange(2) else min(len(content), 1024))
    changed = bytearray(content)
    changed[place] ^= dice.randrange(1, 256)
    return bytes(changed)


def resumed_from(folder: Path) -> tuple[Path | None, list[str]]:
    """The state that a restart uses, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = newest_whole(folder / "state")
    return found, [str(warning.message) for warning in caught]


WRONG: dict[str, tuple[str, Any, str]] = {
    "a list": ("progress.json", lambda p: [p], "progress.json is a list, not an object"),
    "a step in words": ("progress.json", lambda p: p | {"step": "1"}, 'progress.step is "1", not a whole number'),
    "a negative step": ("progress.json", lambda p: p | {"step": -5}, "progress.step is -5"),
    "options as a list": ("progress.json", lambda p: p | {"options": [1]}, "progress.options is a list"),
    "words in plateau": ("progress.json", lambda p: p | {"plateau": {"factor": "x"}}, 'progress.plateau.factor is "x"'),
    "a width in words": ("progress.json", lambda p: p | {"architecture": {"N": "x"}}, "architecture has no M"),
    "a width of others": (
        "progress.json",
        lambda p: p | {"architecture": p["architecture"] | {"N": 10**6}},
        "N=1000000, M=12 ask for",
    ),
    "no tensors": ("model.safetensors", lambda t: {}, "N=8, M=12 ask for"),
    "no optimizer of these": (
        "optimizer.safetensors",
        lambda t: t | {"exp_avg/none": torch.zeros(3)},
        "other tensors for none than this codec's optimizer",
    ),
    "an optimizer's other shape": (
        "optimizer.safetensors",
        lambda t: t | {"exp_avg/g_a.0.weight": torch.zeros(3)},
        "other tensors for g_a.0.weight",
    ),
    "half an optimizer": (
        "optimizer.safetensors",
        lambda t: {name: each for name, each in t.items() if not name.startswith("exp_avg_sq/")},
        "than this codec's optimizer",
    ),
}
"""By what is wrong: the file of a state, what becomes of its content, and what is said."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_of_another_program_is_one_line(run_folder: Path, tmp_path: Path, coco224: Path, wrong: str) -> None:
    """Its checksums are right."""
    name, change, says = WRONG[wrong]
    folder = tmp_path / "state"
    shutil.copytree(states(run_folder)[-1], folder)
    file = folder / name
    if file.suffix == ".json":
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        save_file(change(load_file(file)), file)
    (folder / "manifest.json").write_text(json.dumps({each: checksum(folder / each) for each in FILES}))
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path / "new"), "--max_steps", 5, "--resume", folder]
    with pytest.raises(InputError, match=re.escape(says)):
        train(*words)
    assert not (tmp_path / "new").exists()


def test_what_is_no_state_is_one_line_too(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    shutil.copytree(states(run_folder)[-1], folder)
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="is no state of this program"):
        load_state(folder)


def test_a_state_that_a_kill_left_between_two_names_gets_its_own_back(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "state", tmp_path / "state")
    newest = states(tmp_path)[-1]
    aside = newest.with_name(f".{newest.name}.old")
    newest.rename(aside)
    restore_states(tmp_path / "state")
    assert states(tmp_path)[-1] == newest
    shutil.copytree(newest, aside)  # left by a kill after the second name: the new one stays
    restore_states(tmp_path / "state")
    assert aside.exists()
    assert newest_whole(tmp_path / "state") == newest


def test_200_damages_of_the_files_of_a_run(run_folder: Path) -> None:
    saved = {path: load_state(path) for path in states(run_folder)}
    older, newer = saved
    last = run_folder / "last.safetensors"
    codec, description = load_codec(last)
    files = [*older.iterdir(), *newer.iterdir(), last, last]
    dice = random.Random(0)
    refused, survived = 0, 0
    for number in range(DAMAGES):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, dice))
        try:
            if file == last:
                with pytest.raises(InputError, match=re.escape(f"{last} is")) as error:
                    load_codec(last)
                assert "\n" not in str(error.value)
                refused += 1
            else:
                found, warned = resumed_from(run_folder)
                if file.parent == newer and found == older:
                    assert len(warned) == 1
                    assert warned[0].startswith(f"{newer} is damaged")
                    assert "\n" not in warned[0]
                else:  # the older one is damaged, or a space of the manifest: nothing that counts
                    assert file.parent == older or file.name == "manifest.json"
                    assert (found, warned) == (newer, [])
                assert found
                again, before = load_state(found), saved[found]
                assert again.progress == before.progress
                assert same(again.model, before.model)
                assert same(again.optimizer, before.optimizer)
                survived += 1
        finally:
            file.write_bytes(content)
    assert (refused, survived) == (40, 160)
    again, read = load_codec(last)
    assert same(again.state_dict(), codec.state_dict())
    assert read == description


def test_with_both_states_damaged_nothing_is_used(run_folder: Path) -> None:
    dice = random.Random(1)
    for _ in range(20):
        contents = {path: path.read_bytes() for path in run_folder.glob("state/*/model.safetensors")}
        for path, content in contents.items():
            path.write_bytes(damaged(content, dice))
        with pytest.raises(InputError, match=r"no state in .* is intact; start a new run with"):
            resumed_from(run_folder)
        for path, content in contents.items():
            path.write_bytes(content)
