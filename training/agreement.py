"""Checks that all processes of a run have the same options, files, data and program."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from codec.errors import InputError
from training.options import Options

# Options that may differ between processes: paths on a machine, and how it reads data.
_OF_A_MACHINE = {"coco_dir", "save_dir", "recon_dir", "init_checkpoint", "plugin", "resume", "num_workers"}


def check_agreement(facts: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Refuses processes that differ: they would train different codecs, or wait for each other forever.

    Args:
        facts: values that must be equal, by their name in errors.

    Raises:
        InputError: on every rank, naming what differs.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([dict(facts)])
    first = everyone[0]
    for rank, other in enumerate(everyone):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            values = [f"{name} {first.get(name)} and {other.get(name)}" for name in differing if name.startswith("--")]
            named = values + [name for name in differing if not name.startswith("--")]
            raise InputError(
                f"processes 0 and {rank} differ in {'; '.join(named)}: give every process the same options, data and "
                "program"
            )


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
    for folder in ("coco224", "codec", "training"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
