"""A plugin that cannot work ends the command in one line, before the data is read."""

from pathlib import Path

import pytest
from programs import TINY, into, run

from codec.errors import InputError
from training.options import parse
from training.setup import set_up

BLOCK = """
import os, signal, sys, threading, time
from dataclasses import dataclass
import torch
from torch import nn
from codec.blocks import register_activation
{before}
@register_activation("mine", prefix="{prefix}")
class Mine:
    @dataclass
    class Options:
        {option}

    @staticmethod
    def encoder(channels, options): return {made}
    decoder = encoder
"""


def plugin(
    folder: Path, before: str = "", prefix: str = "mine_", option: str = "x: int = 1", made: str = "nn.ReLU()"
) -> Path:
    path = folder / "mine.py"
    path.write_text(BLOCK.format(before=before, prefix=prefix, option=option, made=made))
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prefix": "h", "option": "elp: int = 1"}, "--help cannot be an option of a block"),
        ({"prefix": "", "option": "config: str = 'x'"}, "--config cannot be an option of a block"),
        ({"prefix": "l", "option": "r: float = 1.0"}, "--lr is an option of the trainer"),
        ({"prefix": "a b="}, "cannot be an option of a block"),
        ({"option": "x: float = float('nan')"}, "nan is no finite default"),
        ({"option": "x: int = 'one'"}, "'one' is not int"),
        ({"before": "sys.exit(0)"}, "line 7: it ends the program"),
        ({"before": "os._exit(0)"}, "line 7: it ends the program"),
        ({"before": "raise KeyboardInterrupt"}, "line 7: KeyboardInterrupt"),
        ({"before": "raise GeneratorExit"}, "line 7: GeneratorExit"),
        ({"made": "5"}, "encoder(8 channels) gives int, not a torch.nn.Module"),
        ({"made": "1 / 0"}, "encoder(8 channels) fails: ZeroDivisionError"),
        ({"made": "sys.exit(0)"}, "encoder(8 channels) fails: it ends the program"),
        (
            {"made": "nn.Conv2d(channels, channels + 1, 1)"},
            "maps [1, 8, 8, 8] to [1, 9, 8, 8]: a block keeps the shape",
        ),
        ({"made": "nn.AvgPool2d(2)"}, "to [1, 8, 4, 4]: a block keeps the shape"),
        ({"made": "nn.Linear(3, 3)"}, "fails on a map [1, 8, 8, 8]: RuntimeError"),
        ({"made": "nn.Threshold(9.0, float('nan'))"}, "gives NaN or Inf"),
        ({"made": "nn.Module()"}, "fails on a map [1, 8, 8, 8]: NotImplementedError"),
    ],
)
def test_what_cannot_work_is_one_line_before_the_data_is_read(
    changes: dict[str, str], says: str, tmp_path: Path
) -> None:
    words = ["--plugin", plugin(tmp_path, **changes), "--act", "mine", *TINY, "--coco_dir", tmp_path / "none"]
    with pytest.raises(InputError) as refused:
        set_up(parse([*map(str, words), *into(tmp_path / "run")]))
    assert says in str(refused.value)


@pytest.mark.parametrize("content", [b"x = '\xff\xfe'", b"\0\1", b"def ("])
def test_what_is_no_python_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(InputError, match=r"--plugin .*mine\.py.*: "):
        parse(["--plugin", str(tmp_path / "mine.py"), "--coco_dir", "x"])


def test_what_a_plugin_leaves_behind_does_not_spoil_the_run(coco224: Path, tmp_path: Path) -> None:
    """A thread that never ends, a closed stdout and another working folder."""
    spoil = "os.chdir('/'); sys.stdout.close(); threading.Thread(target=time.sleep, args=(1e6,)).start()"
    words = ["--plugin", plugin(tmp_path, before=spoil), "--act", "mine", *TINY, "--coco_dir", coco224]
    done = run("train_accel.py", *words, *into(tmp_path / "run"), "--max_steps", 1)
    assert done.returncode == 0, done.stderr


def test_a_recipe_runs_no_code_unless_its_plugin_is_typed(tmp_path: Path) -> None:
    file = plugin(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"plugin: {file}\nact: mine\ncoco_dir: x\n")
    words = ["--config", str(tmp_path / "recipe.yaml")]
    with pytest.raises(InputError, match=f"names a plugin .{file}., which runs code: give --plugin {file} to allow it"):
        parse(words)
    assert parse([*words, "--plugin", str(file)]).replacement.act == "mine"
