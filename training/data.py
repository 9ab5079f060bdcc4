"""The data of a run: rows to train on, rows to validate on, and batches in an order that resume can repeat."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from coco224.batches import Batch, TrainBatches, train_loader
from coco224.dataset import Rows, open_rows
from codec.errors import InputError
from codec.network.pixels import to_float
from codec.quantization.phases import CALIBRATION_PICTURES
from training.options import Options


@dataclass
class TrainingData:
    """The data of a run.

    Attributes:
        rows: what is trained on.
        validation: complete rows to evaluate on; None where the dataset has none.
        batches: this rank's micro-batches of `rows`.
        on_the_hub: the dataset's name on the Hub; empty where it is a folder of this machine.
    """

    rows: Rows
    validation: Rows | None
    batches: TrainBatches
    on_the_hub: str

    @property
    def pictured(self) -> Rows:
        """The rows whose reconstructions are saved."""
        return self.validation or self.rows


def open_splits(options: Options) -> tuple[Rows, Rows | None]:
    """The training rows, and the validation rows where there are any: those are read often, so they never stream.

    Raises:
        InputError, DataError: the dataset cannot be opened or has no train split.
    """
    root, use_prepared = options.data.coco_dir, options.data.use_prepared
    train = open_rows(root, "train", use_prepared, options.data.streaming)
    if train is None:
        raise InputError(f"--coco_dir {root} has no train split; make one with python -m coco224.prepare")
    return train, open_rows(root, "validation", use_prepared)


def batches_of(rows: Rows, options: Options, grad_accum: int, accelerator: Accelerator) -> TrainBatches:
    """This rank's micro-batches of the rows."""
    return TrainBatches(
        rows,
        seed=options.numerics.seed,
        input_size=options.data.input_size,
        hflip=options.data.hflip,
        batch_size=options.data.batch_size,
        grad_accum=grad_accum,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def micro_batches(data: TrainingData, options: Options, first: int, last: int, device: torch.device) -> Iterator[Batch]:
    """The micro-batches of the optimizer steps first .. last - 1, read ahead."""
    workers = options.data.num_workers
    if workers is None:  # raw rows are read faster than a worker could hand them over
        workers = 2 if data.rows.decodes else 0
    return iter(train_loader(data.batches, first, last, workers, pin_memory=device.type == "cuda"))


def first_batches(rows: Rows, options: Options, batch_size: int, count: int, device: torch.device) -> Iterator[Tensor]:
    """Pictures from the run's beginning, [B, 3, H, W] in [0, 1] each: the same on every rank, and after a resume."""
    batches = TrainBatches(
        rows,
        seed=options.numerics.seed,
        input_size=options.data.input_size,
        hflip=options.data.hflip,
        batch_size=batch_size,
        grad_accum=1,
        rank=0,
        world_size=1,
    )
    loader = train_loader(batches, 0, count, num_workers=0, pin_memory=False)
    return (to_float(batch.images, device) for batch in loader)


def calibration_pictures(rows: Rows, options: Options, device: torch.device) -> list[Tensor]:
    """The pictures that quantization looks at, [1, 3, H, W] in [0, 1] each."""
    return list(first_batches(rows, options, 1, min(CALIBRATION_PICTURES, len(rows)), device))
