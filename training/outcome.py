"""The outcome of an optimizer step, which the host reads when the device has computed it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from coco224.batches import can_pin
from training.micro_batches import MicroBatch


class Reading:
    """Values on their way from the device to the host; the device continues with later work meanwhile."""

    def __init__(self, values: Tensor) -> None:
        """`values`: 1-D."""
        self._arrived = torch.cuda.Event() if values.device.type == "cuda" else None
        self._host = values
        if self._arrived:
            pinned = can_pin("figures", values.nbytes)
            self._host = torch.empty(values.shape, pin_memory=pinned).copy_(values, non_blocking=True)
            self._arrived.record()

    def values(self) -> list[float]:
        """The values; waits until they have arrived."""
        if self._arrived:
            self._arrived.synchronize()
        values: list[float] = self._host.tolist()
        return values


@dataclass(frozen=True)
class Outcome:
    """The outcome of an optimizer step. Its properties wait for the device.

    Attributes:
        step: number of the step, from 1.
        lr: the network's learning rate.
        batches: this rank's micro-batches.
        names: names of the figures.
        reading: how many ranks had a fault, how many received a signal, and the figures: means over the global batch.
    """

    step: int
    lr: float
    batches: list[MicroBatch]
    names: list[str]
    reading: Reading

    @property
    def fault(self) -> bool:
        """Whether a rank had NaN, Inf or a huge value; no rank applied the step."""
        return self.reading.values()[0] > 0

    @property
    def stopping(self) -> bool:
        """Whether a rank received a signal to stop."""
        return self.reading.values()[1] > 0

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name."""
        return dict(zip(self.names, self.reading.values()[2:], strict=True))
