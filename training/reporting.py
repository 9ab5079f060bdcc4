"""Options of trackers and of uploads to the Hugging Face Hub."""

from dataclasses import dataclass
from typing import Literal

from coco224.repository import is_repository
from codec.cli import OptionGroup, option
from codec.errors import InputError


@dataclass(frozen=True)
class ReportingOptions(OptionGroup):
    wandb: bool = option(False, "report to Weights & Biases", local=True)
    wandb_project: str = option("npu-image-codec", "its project", local=True)
    run_name: str | None = option(None, "name of the run in the trackers", shown="from the options", local=True)
    wandb_log_model: Literal["false", "end", "checkpoint"] = option(
        "false", "log last.safetensors as W&B artifact: never, at the end, at every checkpoint", local=True
    )
    report_to: str | None = option(None, "other Accelerate trackers, comma-separated", metavar="NAMES", local=True)
    push_to_hub: bool = option(False, "upload checkpoints to the Hugging Face Hub during training", local=True)
    hub_model_id: str | None = option(
        None, "repository to upload to, created if necessary", metavar="USER/NAME", local=True
    )
    hub_private: bool = option(False, "create the repository as private", local=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise InputError("--push_to_hub true needs --hub_model_id USER/NAME: where the checkpoints go")
        if self.hub_model_id and not is_repository(self.hub_model_id):
            raise InputError(f"--hub_model_id {self.hub_model_id} is not a repository name: give USER/NAME")
        if self.wandb_log_model != "false" and not self.wandb:
            raise InputError(
                f"--wandb_log_model {self.wandb_log_model} without --wandb true: there is no run to log to"
            )
