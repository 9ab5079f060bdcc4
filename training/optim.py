"""Parameter groups, optimizer and learning-rate schedule."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from codec.cli import NOT_NEGATIVE, POSITIVE, OptionGroup, at_least, option
from codec.errors import InputError

QUANTILES = "entropy_bottleneck.quantiles"
GAINS = "_gains.drops"
GAINS_SPEED = 10
"""How much faster the gains of rates learn than the network.

They are in octaves. Adam moves a parameter by about the learning rate in a step, and what is little for an octave is
much for a weight.
"""
DECAYED = "weight"  # of convolutions and linear layers; biases, GDN's beta/gamma and the densities have no decay


@dataclass(frozen=True)
class ScheduleOptions(OptionGroup):
    epochs: int = option(10, "passes over the dataset", rule=at_least(1))
    max_steps: int | None = option(None, "limit of optimizer steps", rule=at_least(1), shown="no limit")
    lr: float = option(1e-4, "highest learning rate", rule=POSITIVE, decides=True)
    optimizer: Literal["adam", "adamw"] = option("adam", "optimizer", decides=True)
    weight_decay: float = option(0.0, "weight decay", rule=NOT_NEGATIVE, decides=True)
    sched: Literal["cosine", "none", "onecycle", "plateau"] = option(
        "cosine", "schedule of the learning rate", decides=True
    )
    onecycle_pct_start: float = option(
        0.1,
        "share of the run in which the learning rate of onecycle rises",
        rule=(lambda value: 0 < value < 1, "is a share of the run and must be between 0 and 1"),
        decides=True,
        only_with=("sched", ("onecycle",)),
    )
    lr_warmup_steps: int = option(
        0, "optimizer steps of linear warm-up; not with onecycle", rule=NOT_NEGATIVE, decides=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_warmup_steps and self.sched == "onecycle":
            raise InputError(
                f"--lr_warmup_steps {self.lr_warmup_steps} with --sched onecycle, which warms up by itself: "
                "use --onecycle_pct_start"
            )

    def over(self, total: int) -> "Schedule":
        """The learning rate over a run of `total` optimizer steps."""
        return Schedule(self.sched, self.lr, total, self.lr_warmup_steps, self.onecycle_pct_start)


@dataclass(frozen=True)
class EntropyModelOptions(OptionGroup):
    eb_aux: bool = option(True, "train the entropy bottleneck's quantiles with its auxiliary loss", decides=True)
    eb_aux_lr: float = option(1e-3, "learning rate of the entropy bottleneck's quantiles", rule=POSITIVE, decides=True)


def make_optimizer(
    model: nn.Module, optimizer: str, lr: float, weight_decay: float, quantiles_lr: float
) -> torch.optim.Optimizer:
    """One optimizer with four groups: weights with decay, gains, the rest of the network, the bottleneck's quantiles.

    CompressAI has two optimizers. With two, clipping under a gradient scaler would unscale both, and FSDP would expect
    a second model. Every group has a `role`, by which the schedule finds the groups that it changes.
    """
    decayed, plain, gains, quantiles = [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(QUANTILES):
            quantiles.append(parameter)
        elif name.endswith(GAINS):
            gains.append(parameter)
        elif name.endswith(DECAYED) and parameter.ndim > 1:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "role": "network", "lr": lr, "weight_decay": weight_decay},
        {"params": plain, "role": "network", "lr": lr, "weight_decay": 0.0},
        {"params": gains, "role": "gains", "lr": lr * GAINS_SPEED, "weight_decay": 0.0},
        {"params": quantiles, "role": "quantiles", "lr": quantiles_lr, "weight_decay": 0.0},
    ]
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[optimizer]([group for group in groups if group["params"]], lr=lr, fused=True)


def apply_unless(fault: Tensor, optimizer: torch.optim.Optimizer, scaler: GradScaler) -> None:
    """Applies the gradients. If `fault` is 1, weights and optimizer state stay as they are; the host need not know.

    Args:
        fault: 0 or 1, 0-dim on the device.
    """

    def skip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A fused optimizer does nothing where found_inf is 1; an enabled scaler has set it for its own overflows.
        optimizer.found_inf = torch.maximum(fault, getattr(optimizer, "found_inf", fault))  # type: ignore[attr-defined]

    hook = optimizer.register_step_pre_hook(skip)
    scaler.step(optimizer)
    hook.remove()
    optimizer.__dict__.pop("found_inf", None)  # the scaler removes it, if it is enabled


def clipped_together(model: nn.Module, apart: bool) -> list[list[nn.Parameter]]:
    """Lists of parameters whose gradients are clipped to a common norm. Quantiles, which have their own loss, are not.

    Args:
        apart: entropy models and hyperprior have a separate norm, so that their loss does not rescale the transforms'
            gradients.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and not name.endswith(QUANTILES)}
    rate = [p for name, p in trained.items() if "g_a." not in name and "g_s." not in name]
    transforms = [p for name, p in trained.items() if "g_a." in name or "g_s." in name]
    lists = [transforms, rate] if apart else [transforms + rate]
    return [parameters for parameters in lists if parameters]


@dataclass
class Schedule:
    """The learning rate over a run, a function of the step; the gains have a multiple of it, the quantiles their own.

    A function of the step needs no state to resume, and cannot advance once per rank as a prepared scheduler does.
    Only `plateau` has a state.

    Attributes:
        kind: "none", "cosine" (to zero over `total` steps), "onecycle" (Smith & Topin 2017, arXiv:1708.07120, with
            torch's shape: from lr/25 up to lr in `pct_start` of the run, down to lr/250,000, along cosines) or
            "plateau" (lr x 0.5 if the validation loss has not fallen by a share of 1e-4 in more than 2 evaluations).
        warmup: steps of linear warm-up, a factor on the schedule (refused with onecycle).
    """

    kind: str
    lr: float
    total: int
    warmup: int = 0
    pct_start: float = 0.1
    plateau: dict[str, Any] = field(default_factory=lambda: {"factor": 1.0, "best": math.inf, "bad": 0})

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step` (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * warm * self._shape(step)

    def _shape(self, step: int) -> float:
        if self.kind == "cosine":
            return _cosine(1.0, 0.0, step / self.total)
        if self.kind == "onecycle":
            peak, last = self.pct_start * self.total - 1, self.total - 1
            if step <= peak:
                return _cosine(1 / 25, 1.0, step / peak if peak > 0 else 1.0)
            return _cosine(1.0, 1 / 250_000, (step - peak) / (last - peak) if last > peak else 1.0)
        return float(self.plateau["factor"])

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the learning rates of network and gains for this step, and returns the network's."""
        lr = self.at(step)
        for group in optimizer.param_groups:
            if group["role"] != "quantiles":
                group["lr"] = lr * (GAINS_SPEED if group["role"] == "gains" else 1)
        return lr

    def observe(self, validation_loss: float) -> None:
        """Updates `plateau` after an evaluation; the other kinds ignore it."""
        if self.kind != "plateau":
            return
        if self.plateau["best"] - validation_loss > 1e-4 * abs(validation_loss):  # abs: minus PSNR is below zero
            self.plateau.update(best=validation_loss, bad=0)
        else:
            self.plateau["bad"] += 1
        if self.plateau["bad"] > 2:
            self.plateau.update(factor=self.plateau["factor"] * 0.5, bad=0)


def _cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine, progress in 0..1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
