"""A damaged checkpoint is refused in one line, or the one before it is used; never wrong weights, never a crash."""

import random
import re
import warnings
from pathlib import Path

import pytest
from programs import TINY, into, same, states, train

from codec.checkpoint import load_codec
from codec.errors import InputError
from training.state import load_state, newest_whole

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
