"""Writes figures to a JSON file, completely or not at all."""

import json
from pathlib import Path
from typing import Any

from coco224.files import in_words, write_whole
from codec.errors import InputError


def write_json(path: str, figures: Any) -> None:
    """Writes the figures.

    Raises:
        InputError: the disk is full, or another error came that `codec.cli.check_output` could not predict.
    """
    try:
        write_whole(Path(path), json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {in_words(error)}; nothing was written, name another file") from error
