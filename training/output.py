"""The files that a run writes: where and how often."""

from dataclasses import dataclass
from typing import Literal

from codec.cli import NOT_EMPTY, NOT_NEGATIVE, OptionGroup, at_least, option


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    save_dir: str = option(
        "./checkpoints", "folder for checkpoints and the record of the run", metavar="DIR", rule=NOT_EMPTY, local=True
    )
    recon_dir: str = option("./recon", "reconstructions", metavar="DIR", rule=NOT_EMPTY, local=True)
    recon_every: int = option(2, "epochs between reconstructions; 0: never", rule=NOT_NEGATIVE)
    recon_count: int = option(16, "pictures that are reconstructed", rule=at_least(1))
    eval_every: int = option(1, "epochs between evaluations; 0: never", rule=NOT_NEGATIVE)
    checkpoint_every: int = option(500, "optimizer steps between checkpoints", rule=at_least(1))
    log_every: int = option(10, "optimizer steps between records", rule=at_least(1))
    keep_checkpoints: int = option(2, "number of states to resume from that are kept", rule=at_least(2))
    full_disk: Literal["continue", "stop"] = option(
        "continue", "what the run does if the disk is full at a checkpoint", local=True
    )
    resume: str = option("auto", "auto, none, or the path of a saved state", metavar="PATH", rule=NOT_EMPTY, local=True)
    overwrite: bool = option(False, "replace an earlier run in --save_dir, if it is not resumed", local=True)
