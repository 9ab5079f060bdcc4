"""A plugin that cannot work ends the command in one line, before the data is read."""

import re
from functools import partial
from pathlib import Path

import pytest
from programs import TINY, into, run, train

from codec.blocks import code_of_block, load_plugin
from codec.cli import run as run_command
from codec.errors import InputError
from training.options import parse
from training.preempt import Preempted
from training.setup import set_up

BLOCK = """
import os, signal, sys, threading, time
from dataclasses import dataclass, field
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


def module(method: str) -> dict[str, str]:
    """Changes that make the block a module with this method."""
    return {"before": f"class Odd(BaseException): pass\nclass M(nn.ReLU):\n    {method}", "made": "M()"}


def with_buffer(value: str) -> dict[str, str]:
    return module(f"def __init__(self): super().__init__(); self.register_buffer('s', {value})")


def metadata(hints: str) -> dict[str, str]:
    return {"option": f"x: int = field(default=1, metadata={hints})"}


BAD_BACKWARD = "x = x * 1; x.register_hook(lambda g: 1 / 0) if x.requires_grad else 0; return x"


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
        ({"before": "class Odd(BaseException): pass\nraise Odd('hi')"}, "line 8: Odd: hi"),
        (module("def forward(self, x): raise Odd('hi')"), "fails on a map [1, 8, 8, 8]: Odd: hi"),
        ({"made": "os._exit(0)"}, "encoder(8 channels) fails: it ends the program"),
        (module("def forward(self, x): os._exit(0)"), "fails on a map [1, 8, 8, 8]: it ends the program"),
        (metadata("{'help': 5}"), "option 'x': metadata 'help': 5: give 'help' only, a text"),
        (metadata("{'help': 'x', 'rule': 5}"), "option 'x': metadata 'rule': 5: give 'help' only, a text"),
        ({"made": "nn.AdaptiveAvgPool2d(8)"}, "maps [2, 8, 6, 10] to [2, 8, 8, 8]: a block keeps the shape"),
        ({"made": "nn.LayerNorm([8, 8])"}, "fails on a map [2, 8, 6, 10] in training: RuntimeError"),
        ({"made": "nn.LazyConv2d(channels, 1)"}, "weight has no shape yet: use no lazy module"),
        (module("def forward(self, x): return x.double()"), "maps torch.float32 to torch.float64"),
        (module("def forward(self, x): return x.to_sparse()"), "a block keeps the layout"),
        (module("def forward(self, x): return 1 / 0 if self.training else x"), "in training: ZeroDivisionError"),
        (module(f"def forward(self, x): {BAD_BACKWARD}"), "fails in the backward of a map [2, 8, 6, 10]: ZeroDivision"),
        (module("def get_extra_state(self): return {'a': 1}"), "_extra_state of its state dict is {'a': 1}: a check"),
        (module("def state_dict(self, **k): 1 / 0"), "its state_dict() fails: ZeroDivisionError"),
        (module("def _load_from_state_dict(self, *a): 1 / 0"), "does not load the state dict that it gives: ZeroDiv"),
        (
            with_buffer("torch.eye(3).to_sparse()"),
            "s of its state dict is a tensor of torch.sparse_coo on cpu: a check",
        ),
        (with_buffer("torch.full((3,), torch.inf)"), "s of its state dict has NaN or Inf"),
        (with_buffer("torch.ones(3).bfloat16()"), "s of its state dict has torch.bfloat16: use torch.float32"),
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
    """A thread that never ends, a closed stdout, another working folder and another type of floats."""
    thread = "threading.Thread(target=time.sleep, args=(1e6,)).start()"
    spoil = f"torch.set_default_dtype(torch.float64); os.chdir('/'); sys.stdout.close(); {thread}"
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


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("1 / 0", "M.forward fails: ZeroDivisionError: division by zero: repair it"),
        ("raise Odd('hi')", "M.forward fails: Odd: hi: repair it"),
        ("os._exit(0)", "M.forward fails: it ends the program (SystemExit: 0); a plugin only registers blocks"),
        (BAD_BACKWARD, "M.forward.<locals>.<lambda> fails: ZeroDivisionError"),
    ],
)
def test_what_fails_only_in_the_run_is_one_line_that_names_the_plugins_line(
    fault: str, says: str, coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plugin(
        tmp_path,
        **module(f"def forward(self, x):\n        if x.is_meta or len(x) < 8: return x\n        {fault}"),
    )
    words = ["--plugin", file, "--act", "mine", "--coco_dir", coco224, *TINY, *into(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run_command(partial(train, *words, "--max_steps", 1))
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: --plugin {file}, line 11: {says}")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("(y, y)", "to tuple: a block keeps the shape"),
        ("y[..., :-1]", "to [1, 8, 112, 111]: a block keeps the shape"),
        ("y.double()", "maps torch.float32 to torch.float64"),
        ("y.to('meta')", "maps cpu to meta"),
    ],
)
def test_a_block_that_is_right_on_small_maps_only_is_refused(made: str, says: str, tmp_path: Path) -> None:
    file = plugin(tmp_path, **module(f"def forward(self, y): return y if y.shape[-1] < 17 else {made}"))
    words = ["--plugin", file, "--act", "mine", *TINY, "--coco_dir", tmp_path / "none"]
    with pytest.raises(InputError, match=re.escape(says)):
        set_up(parse([*map(str, words), *into(tmp_path / "run")]))


def test_a_layer_of_torch_that_fails_only_in_the_run_is_one_line_that_names_the_block(
    coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plugin(tmp_path, made="nn.Sequential(nn.ReflectionPad2d(5), nn.AvgPool2d(11, 1))")
    words = ["--plugin", file, "--act", "mine", "--coco_dir", coco224, *TINY, *into(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run_command(partial(train, *words, "--max_steps", 1, "--input_size", 32))
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: --act mine: Sequential fails: RuntimeError: ")


def test_a_signal_is_no_error_of_a_block() -> None:
    with pytest.raises(Preempted), code_of_block("it fails"):
        raise Preempted


def test_a_process_that_a_plugin_forks_may_end(tmp_path: Path) -> None:
    forks = (
        "child = os.fork()\nif not child: os._exit(7)\nassert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7"
    )
    assert load_plugin(plugin(tmp_path, before=forks)) == ["mine"]
