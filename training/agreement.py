"""What must be the same in all processes of a run: options, files and program."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.options import Options

# Options that may differ between processes: paths on a machine, and how it reads data.
_OF_A_MACHINE = {"coco_dir", "save_dir", "recon_dir", "init_checkpoint", "plugin", "resume", "num_workers"}


def facts(options: Options, files: Mapping[str, str]) -> dict[str, Any]:
    """Values that must be equal in every process, known before the data is opened.

    Args:
        files: checksums of the files that affect the result of a run, by option.
    """
    values = {f"--{name}": value for name, value in options.flat().items() if name not in _OF_A_MACHINE}
    contents = {f"the content of --{name}": checksum for name, checksum in files.items()}
    return {**values, **contents, "the program's code": _code(), "PyTorch": torch.__version__}


def _code() -> str:
    """A checksum of this program's files."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    files = [file for folder in ("coco224", "codec", "training") for file in sorted((root / folder).rglob("*.py"))]
    for file in (*files, root / "train_accel.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()
