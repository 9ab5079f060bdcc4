"""Keeps the blocks that a distilled start has fitted until the run has a state: a start that was stopped goes on.

They lie in a hidden folder of --save_dir. Their names hold a checksum of all that decides them, so another command
fits its own.
"""

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from coco224.files import in_words, read_regular, write_whole
from codec.description.file import MOST_BYTES

FOLDER = ".distilled"
_ERROR = "/error"  # beside the names of a block's tensors, which are words and dots
_NAME = re.compile(r"[0-9a-f]{16}\.[a-z_]+\.\d+\.safetensors|\.[0-9a-f]{16}\..*\.partial")  # the latter of a kill


class FittedBlocks:
    """The fitted blocks of a run.

    Args:
        save_dir: the folder of the run.
        decisive: what decides the fit, by name.
        writes: this process keeps its blocks; the others only read.
    """

    def __init__(self, save_dir: Path, decisive: Mapping[str, Any], writes: bool) -> None:
        key = hashlib.sha256(json.dumps(dict(decisive), sort_keys=True).encode()).hexdigest()[:16]
        self._start, self._writes = save_dir / FOLDER / key, writes

    def load(self, name: str, block: nn.Module) -> Tensor | None:
        """Gives a block its fitted parameters, in place, and returns its error; None if they are not kept, or damaged.

        Args:
            name: of the block in the codec, for example "g_a.1".
        """
        own = block.state_dict()
        try:
            tensors: dict[str, Tensor] = load(read_regular(self._path(name), MOST_BYTES))
            forms = {each: (tensor.shape, tensor.dtype) for each, tensor in own.items()}
            error = tensors.pop(_ERROR)
            if {each: (tensor.shape, tensor.dtype) for each, tensor in tensors.items()} != forms or error.ndim:
                return None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        block.load_state_dict(tensors)
        return error

    def keep(self, name: str, block: nn.Module, error: Tensor) -> None:
        """Writes a fitted block; warns if it cannot."""
        if not self._writes:
            return
        tensors = {**block.state_dict(), _ERROR: error}
        own = {each: tensor.detach().cpu().contiguous().clone() for each, tensor in tensors.items()}
        try:
            write_whole(self._path(name), save(own))
        except OSError as failure:
            warnings.warn(f"a fitted block is not kept: {in_words(failure)}", stacklevel=2)

    def _path(self, name: str) -> Path:
        return self._start.with_name(f"{self._start.name}.{name}.safetensors")


def forget_fitted(save_dir: Path) -> None:
    """Removes the fitted blocks of any command; called when the run has a state."""
    folder = save_dir / FOLDER
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name):
                path.unlink()
        folder.rmdir()
