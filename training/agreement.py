"""What must be the same in all processes of a run: options, files and program."""

from collections.abc import Mapping
from typing import Any

from codec.evaluation.ranks import program
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
    return {**values, **contents, **program("coco224", "codec", "training", "train_accel.py")}
