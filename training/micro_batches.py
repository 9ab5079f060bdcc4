"""The micro-batches of a run, with what is drawn for them: ready before the step that uses them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from coco224.batches import TrainBatches, train_loader
from coco224.processes import usable_cores
from coco224.ranks import ranks_here
from codec.network.bottleneck import noise_keys
from training.rates import drawn_rates


class MicroBatch(NamedTuple):
    """B pictures of an optimizer step.

    images: uint8 [B, 3, S, S], channels_last in memory.
    rows: int64 [B], row numbers, on the host.
    keys: int64 [B], keys of the quantization noise.
    rates: float32 [B] within 0..1, what each picture trains; None if the codec has one rate.
    """

    images: Tensor
    rows: Tensor
    keys: Tensor
    rates: Tensor | None


class DrawnBatches:
    """Batches with keys and rates, which whoever reads a batch computes: a thread or a process, never the step.

    Args:
        rates: the number of trained rates.
    """

    def __init__(self, batches: TrainBatches, seed: int, rates: int) -> None:
        self._batches, self._seed, self._rates = batches, seed, rates
        self.grad_accum, self.batch_bytes = batches.grad_accum, batches.batch_bytes

    def __getitem__(self, k: int) -> MicroBatch:
        images, rows, places = self._batches[k]
        of_step = self._seed, k // self.grad_accum, places
        return MicroBatch(images, rows, noise_keys(*of_step), drawn_rates(self._rates, *of_step))


def micro_batches(
    batches: DrawnBatches, decodes: bool, num_workers: int | None, first: int, last: int, device: torch.device
) -> Iterator[MicroBatch]:
    """The micro-batches of the optimizer steps first .. last - 1 on the device, read ahead.

    Args:
        decodes: the rows are decoded when they are read. Raw rows need no workers: reading is faster than a transfer.
    """
    if num_workers is None:
        num_workers = decoders(device) if decodes else 0
    on_gpu = device.type == "cuda"
    loaded = train_loader(batches, first, last, num_workers, pin_memory=on_gpu)
    return copied_ahead(loaded, device) if on_gpu else (on_device(batch, device) for batch in loaded)


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The batch with pictures, keys and rates on the device; on a CPU they are there already."""
    images, keys = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.keys))
    rates = None if batch.rates is None else batch.rates.to(device, non_blocking=True)
    return MicroBatch(images, batch.rows, keys, rates)


def copied_ahead(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The batches on a GPU. Each is copied in a second stream, while the GPU computes with the one before it."""
    copying = torch.cuda.Stream(device)

    def copied(batch: MicroBatch) -> MicroBatch:
        with torch.cuda.stream(copying):
            return on_device(batch, device)

    coming = map(copied, batches)
    batch = next(coming, None)
    while batch is not None:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)  # for this batch; the next one's copy begins after it
        following = next(coming, None)
        for tensor in (batch.images, batch.keys, batch.rates):
            if tensor is not None:
                tensor.record_stream(computing)  # its memory is not used again before this stream is done with it
        yield batch
        batch = following


def decoders(device: torch.device) -> int:
    """Processes that decode rows for a rank: beside a GPU, 2 to 8 by the rank's share of the cores; on a CPU 2."""
    if device.type != "cuda":
        return 2
    return min(8, max(2, usable_cores() // ranks_here() - 1))
