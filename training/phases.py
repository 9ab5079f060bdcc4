"""The phases of quantization-aware training, by optimizer step."""

from dataclasses import dataclass
from typing import Any, Literal

from codec.cli import NOT_NEGATIVE, OptionGroup, at_least, option
from codec.description.architecture import Phase
from codec.errors import InputError
from codec.quantization.observers import OBSERVERS

_OF_QAT: dict[str, Any] = {"decides": True, "only_with": ("qat", (True,))}


@dataclass(frozen=True)
class QatOptions(OptionGroup):
    qat: bool = option(False, "quantization-aware training", decides=True)
    qat_scope: Literal["encoder", "decoder", "all"] = option("encoder", "which transforms are quantized", **_OF_QAT)
    qat_exclude_entropy: bool = option(
        True, "leave h_a of a hyperprior in float; false: it is quantized with the encoder", **_OF_QAT
    )
    qat_calib_steps: int = option(
        2000,
        "optimizer steps that learn the ranges of activations, before fake quantization begins",
        rule=NOT_NEGATIVE,
        **_OF_QAT,
    )
    qat_freeze_after: int = option(
        8000,
        "optimizer step after which the scales of weights are fixed too",
        rule=NOT_NEGATIVE,
        **_OF_QAT,
    )
    qat_act_observer: str = option(
        "ema",
        "ranges of activations: `ema` averages each picture's min/max; `minmax` keeps the extremes",
        choices=OBSERVERS,
        **_OF_QAT,
    )
    qat_w_per_channel: bool = option(
        True,
        "one scale per output channel of a weight; false: one per layer",
        **_OF_QAT,
    )
    qat_disable_observer_step: int = option(
        -1,
        "optimizer step at which all ranges stop learning; -1: when their phase ends",
        rule=at_least(-1),
        **_OF_QAT,
    )
    qat_a16: str | None = option(
        None,
        "globs of names of activations that get 16 bits, comma-separated; a name that does not exist lists all",
        metavar="GLOBS",
        shown="none",
        optional=True,
        **_OF_QAT,
    )
    qat_eval_fakequant: bool = option(True, "evaluate with fake quantization", only_with=("qat", (True,)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qat_freeze_after < self.qat_calib_steps:
            raise InputError(
                f"--qat_freeze_after {self.qat_freeze_after} comes before the end of the calibration, "
                f"--qat_calib_steps {self.qat_calib_steps}: give --qat_freeze_after {self.qat_calib_steps} or more"
            )


def check_phases(qat: QatOptions, total: int, sharded: bool) -> None:
    """Refuses FSDP, and phases that a run of `total` optimizer steps does not reach.

    Raises:
        InputError: names the first such phase.
    """
    if sharded:
        raise InputError(
            "--qat true with FSDP, which reads the weight of a layer where QAT returns the fake-quantized one: use DDP "
            "(accelerate_configs/ddp.yaml); this codec is small enough"
        )
    for name, last in (("fixed-scale", "qat_calib_steps"), ("eval-ready", "qat_freeze_after")):
        if getattr(qat, last) >= total:
            raise InputError(
                f"--{last} {getattr(qat, last)}: a run of {total} optimizer steps never reaches the {name} phase; "
                "lower --qat_calib_steps and --qat_freeze_after, or train longer (--epochs, --max_steps)"
            )


def phase_of(qat: QatOptions, step: int) -> Phase:
    """The phase of an optimizer step (0-based)."""
    if step < qat.qat_calib_steps:
        return Phase.CALIBRATION
    return Phase.FIXED_SCALE if step < qat.qat_freeze_after else Phase.EVAL_READY


def begins_phase(qat: QatOptions, step: int) -> bool:
    """Whether an optimizer step (0-based) after the first is the first of a phase: code is compiled anew for it."""
    return qat.qat and step > 0 and step in (qat.qat_calib_steps, qat.qat_freeze_after, qat.qat_disable_observer_step)


def begins_fake_quantization(qat: QatOptions, step: int) -> bool:
    """Whether this optimizer step (0-based) is the first with fake quantization: weights are rounded before it.

    False if the run starts with fake quantization: then its codec was already trained with it.
    """
    return qat.qat and 0 < qat.qat_calib_steps == step
