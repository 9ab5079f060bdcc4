"""`python -m benchmarks.startup`: how long `--help` takes, and a training until its first optimizer step."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Row, alternate, publish
from benchmarks.pictures import prepared

ROUNDS = 5
SMALL = ("--config", "recipes/sample_gdn.yaml", "--klt_start", "false")

# The trainer as it is, ended by its first step, with a list of what it has imported.
FIRST_STEP = """
import os, sys
import train_accel

def first(*args, step=train_accel.optimizer_step):
    step(*args)
    open(sys.argv.pop(), "w").write("\\n".join(sys.modules))
    os._exit(0)

train_accel.optimizer_step = first
train_accel.main(sys.argv[1:-1])
"""

# The same modules in the same order; some stand in sys.modules without a file of their own.
IMPORTS = """
import contextlib, importlib, os, sys
for name in open(sys.argv[1]).read().split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
os._exit(0)
"""


def main() -> None:
    """Whole processes, from their start to their end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        words = [
            *SMALL,
            "--coco_dir",
            prepared(folder, 16),
            "--save_dir",
            folder / "run",
            "--recon_dir",
            folder / "recon",
        ]
        modules = folder / "modules"
        seconds = alternate(
            {
                "import torch, s": python("-c", "import torch"),
                "--help, s": python("train_accel.py", "--help"),
                "to the first step, s": python("-c", FIRST_STEP, *words, modules),
                "its imports, s": python("-c", IMPORTS, modules),
            },
            ROUNDS,
        )
    torch, shown, stepped, imported = seconds.values()
    names = list(seconds)
    publish(
        "startup",
        [
            Row(
                "`python train_accel.py --help` beyond `import torch`",
                shown - torch,
                "s",
                at_most=0.5,
                sides={name: seconds[name] for name in names[:2]},
            ),
            Row(
                "a small codec's training to its first optimizer step, uncompiled, beyond its imports",
                stepped - imported,
                "s",
                at_most=3,
                sides={name: seconds[name] for name in names[2:]},
            ),
        ],
    )


def python(*words: object) -> Callable[[], None]:
    """A round that runs such a process to its end."""

    def run() -> None:
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


if __name__ == "__main__":
    main()
