"""Figures as a JSON file: refused before the work where it cannot be written, and whole or absent after it."""

import json
import os
from pathlib import Path
from typing import Any

from coco224.files import whole_or_absent
from codec.errors import InputError


def check_json(path: str | None) -> None:
    """Raises InputError where --json cannot be written."""
    if not path:
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise InputError(f"--json {path}: its folder does not exist; make it first")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--json {path}: it cannot be written there; name another file")


def write_json(path: str, figures: Any) -> None:
    """Writes them.

    Raises:
        InputError: the disk is full, or what `check_json` could not foresee.
    """
    try:
        with whole_or_absent(Path(path)) as beside:
            beside.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}; nothing was written, name another file") from error
