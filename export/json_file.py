"""Writes figures to a JSON file, completely or not at all. A path that cannot be written is refused before the work."""

import json
import os
from pathlib import Path
from typing import Any

from coco224.files import whole_or_absent
from codec.errors import InputError


def check_json(path: str | None) -> None:
    """Raises InputError if --json cannot be written."""
    if not path:
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise InputError(f"--json {path}: its folder does not exist; make it first")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--json {path}: it cannot be written there; name another file")


def write_json(path: str, figures: Any) -> None:
    """Writes the figures.

    Raises:
        InputError: the disk is full, or another error came that `check_json` could not predict.
    """
    try:
        with whole_or_absent(Path(path)) as beside:
            beside.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}; nothing was written, name another file") from error
