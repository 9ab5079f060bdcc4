"""What a run writes, where and how often."""

from dataclasses import dataclass
from typing import Literal

from codec.cli import NOT_EMPTY, NOT_NEGATIVE, OptionGroup, at_least, option


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    save_dir: str = option(
        "./checkpoints", "checkpoints and the local record", metavar="DIR", rule=NOT_EMPTY, local=True
    )
    recon_dir: str = option("./recon", "reconstructions", metavar="DIR", rule=NOT_EMPTY, local=True)
    recon_every: int = option(2, "epochs between reconstructions; 0: never", rule=NOT_NEGATIVE)
    recon_count: int = option(16, "pictures that are reconstructed", rule=at_least(1))
    eval_every: int = option(1, "epochs between evaluations; 0: never", rule=NOT_NEGATIVE)
    checkpoint_every: int = option(500, "optimizer steps between checkpoints", rule=at_least(1))
    log_every: int = option(10, "optimizer steps between records", rule=at_least(1))
    keep_checkpoints: int = option(2, "states to resume from that are kept", rule=at_least(2))
    full_disk: Literal["continue", "stop"] = option(
        "continue", "what a checkpoint that finds the disk full does to the run", local=True
    )
    resume: str = option("auto", "auto, none, or a saved state", metavar="PATH", rule=NOT_EMPTY, local=True)
    overwrite: bool = option(False, "start anew in a --save_dir that holds a run", local=True)
