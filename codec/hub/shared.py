"""What of a run's options others may see: no folder of the machine that trained, and no name of a tracker's run."""

from dataclasses import replace
from pathlib import PureWindowsPath

import yaml

from codec.description.architecture import Scalar
from codec.description.file import CheckpointFile, to_bytes

_KEPT_AT_HOME = ("run_name", "wandb_project")
_NO_PATHS = ("hub_model_id",)


def shared(saved: CheckpointFile) -> CheckpointFile:
    """The checkpoint with the options that others may see. Its content does not change if it says nothing else."""
    description = saved.description
    options = {
        name: value if name in _NO_PATHS or value == description.dataset else _without_folder(value)
        for name, value in description.options.items()
        if name not in _KEPT_AT_HOME
    }
    if options == description.options:
        return saved
    description = replace(description, options=options)
    content = to_bytes(saved.arrays, saved.architecture, description)
    return replace(saved, content=content, description=description)


def shared_config(config: bytes, saved: CheckpointFile) -> bytes:
    """A run's config.yaml with the options of its shared checkpoint; the first line, its command, stays."""
    first = config.partition(b"\n")[0]
    return first + b"\n" + yaml.safe_dump(saved.description.options, sort_keys=False).encode()


def _without_folder(value: Scalar | None) -> Scalar | None:
    """The last part of a path, of any system; other values as they are."""
    return PureWindowsPath(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value
