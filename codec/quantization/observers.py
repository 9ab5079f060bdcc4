"""Observers: how an activation quantizer learns the range of a tensor during calibration.

An observer holds no state. Its quantizer keeps the range and a small summary of the current optimizer step, `batch`,
in float64, so that the order of a sum does not change the result. Each micro-batch on each rank is summarized;
summaries are combined over micro-batches and ranks; at the end of the step the combined summary moves the range.

To add an observer, derive a class from `Observer` and give it a name in `OBSERVERS`.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from codec.errors import InputError

Reduction = Literal["sum", "max"]

EMA_STEPS = 100
"""`ema` is the plain mean over the first steps; from this step on a new step has the weight 1 / EMA_STEPS."""


class Observer(ABC):
    """What a quantizer keeps of the tensors that it sees, and how this moves its range.

    Attributes:
        reduction: how summaries are combined, over the micro-batches of a step and over ranks.
    """

    reduction: Reduction

    @property
    def empty(self) -> float:
        """Each value of the summary of no picture: the identity of the reduction."""
        return 0.0 if self.reduction == "sum" else -math.inf

    def combine(self, one: Tensor, other: Tensor) -> Tensor:
        """The summary of two micro-batches from the summary of each."""
        return one + other if self.reduction == "sum" else torch.maximum(one, other)

    @abstractmethod
    def summarize(self, low: Tensor, high: Tensor) -> Tensor:
        """The summary [3] of a micro-batch.

        Args:
            low: float64 [B], the smallest value of each picture.
            high: float64 [B], the largest value of each picture.
        """

    @abstractmethod
    def batch_range(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high, 0-dim float32, that the summary of one step stands for."""

    @abstractmethod
    def move(self, kept: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], steps: Tensor) -> tuple[Tensor, Tensor]:
        """The range after a step.

        Args:
            kept: low and high before the step.
            seen: `batch_range` of the step.
            steps: number of steps so far, this one included; 2 or more, since the first step's range is kept as it is.
        """


class Ema(Observer):
    """Moving average of each picture's minimum and maximum, so that rare values are clipped.

    The summary is the sum of the minima, the sum of the maxima and the number of pictures.
    """

    reduction = "sum"

    def summarize(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([low.sum(), high.sum(), torch.ones_like(low).sum()])

    def batch_range(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (batch[:2] / batch[2]).float()
        return low, high

    def move(self, kept: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], steps: Tensor) -> tuple[Tensor, Tensor]:
        weight = 1 / steps.clamp(max=EMA_STEPS)
        return torch.lerp(kept[0], seen[0], weight), torch.lerp(kept[1], seen[1], weight)


class MinMax(Observer):
    """The extremes of all pictures, so that nothing seen is clipped.

    The summary is the greatest -minimum, the greatest maximum and 1.
    """

    reduction = "max"

    def summarize(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([-low.min(), high.max(), torch.ones_like(low).max()])

    def batch_range(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return -batch[0].float(), batch[1].float()

    def move(self, kept: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], steps: Tensor) -> tuple[Tensor, Tensor]:
        return torch.minimum(kept[0], seen[0]), torch.maximum(kept[1], seen[1])


OBSERVERS: dict[str, Observer] = {"ema": Ema(), "minmax": MinMax()}
"""The observers by name; these names are the choices of --qat_act_observer."""


def observer_named(name: str) -> Observer:
    """The observer of this name.

    Raises:
        InputError: there is none.
    """
    if name not in OBSERVERS:
        raise InputError(f"observer {name!r} is unknown; this version has {', '.join(OBSERVERS)}")
    return OBSERVERS[name]
