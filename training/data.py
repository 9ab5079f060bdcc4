"""The data of a run: training rows, validation rows, and batches in an order that a resumed run repeats."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from coco224.batches import TrainBatches, train_loader
from coco224.dataset import Rows, open_rows
from coco224.repository import is_repository
from codec.cli import OptionGroup, at_least, between, option
from codec.description.architecture import STRIDE
from codec.errors import InputError
from codec.network.pixels import to_float


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    coco_dir: str = option(
        "",
        "dataset of coco224.prepare, a folder or on the Hub (USER/NAME), or a COCO root",
        metavar="DIR",
        shown="required",
    )
    use_prepared: bool = option(True, "false: --coco_dir is a COCO root, cropped on the fly", decides=True)
    streaming: bool = option(False, "fetch the rows of a dataset on the Hub during training, not before", decides=True)
    input_size: int = option(
        224,
        "side of the random crop from each row, in pixels",
        rule=(
            lambda size: size > 0 and size % STRIDE == 0,
            f"must be a multiple of {STRIDE}, the codec's stride",
        ),
        decides=True,
    )
    hflip: bool = option(False, "mirror half of the crops", decides=True)
    batch_size: int = option(16, "crops per process in a micro-batch", rule=at_least(1))
    grad_accum: int = option(1, "micro-batches per optimizer step", rule=at_least(1))
    num_workers: int | None = option(
        None,
        "processes per rank that read data",
        rule=between(0, 256),
        shown="0 for raw rows, else by cores",
        local=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coco_dir:
            raise InputError(
                "--coco_dir is required: a dataset that `python -m coco224.prepare` made, "
                "or a COCO root with --use_prepared false"
            )
        if self.streaming and not (self.use_prepared and is_repository(self.coco_dir)):
            raise InputError(
                f"--streaming true with --coco_dir {self.coco_dir}, which is not on the Hub: leave --streaming out"
            )
        if self.streaming and self.num_workers:
            raise InputError(
                f"--num_workers {self.num_workers} with --streaming true, which reads with threads: leave one out"
            )

    def on_the_hub(self) -> bool:
        """Whether --coco_dir names a dataset on the Hub: an existing path has priority."""
        return self.use_prepared and is_repository(self.coco_dir) and not Path(self.coco_dir).exists()


@dataclass
class TrainingData:
    """The data of a run.

    Attributes:
        rows: the training rows.
        validation: complete rows to evaluate on; None if the dataset has none.
        batches: this rank's micro-batches of `rows`.
        on_the_hub: the dataset's name on the Hub; empty for a local folder.
    """

    rows: Rows
    validation: Rows | None
    batches: TrainBatches
    on_the_hub: str

    @property
    def pictured(self) -> Rows:
        """The rows whose reconstructions are saved."""
        return self.validation or self.rows


def open_splits(data: DataOptions) -> tuple[Rows, Rows | None]:
    """The training rows, and the validation rows if there are any. Validation rows are read often, so never streamed.

    Raises:
        InputError, DataError: the dataset cannot be opened or has no train split.
    """
    train = open_rows(data.coco_dir, "train", data.use_prepared, data.streaming)
    if train is None:
        raise InputError(f"--coco_dir {data.coco_dir} has no train split; make one with python -m coco224.prepare")
    return train, open_rows(data.coco_dir, "validation", data.use_prepared)


def batches_of(
    rows: Rows, data: DataOptions, seed: int, grad_accum: int = 1, rank: int = 0, world_size: int = 1
) -> TrainBatches:
    """The micro-batches of a rank."""
    return TrainBatches(
        rows,
        seed=seed,
        input_size=data.input_size,
        hflip=data.hflip,
        batch_size=data.batch_size,
        grad_accum=grad_accum,
        rank=rank,
        world_size=world_size,
    )


def first_batches(
    rows: Rows, data: DataOptions, seed: int, batch_size: int, count: int, device: torch.device
) -> Iterator[Tensor]:
    """The run's first training pictures, [B, 3, H, W] in [0, 1]: the same on every rank, and after a resume."""
    batches = batches_of(rows, replace(data, batch_size=batch_size), seed)
    loader = train_loader(batches, 0, count, num_workers=0, pin_memory=False)
    return (to_float(batch.images, device) for batch in loader)
