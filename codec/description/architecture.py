"""A codec's architecture as plain data: widths, the block of each transform, and how it is quantized."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from codec.errors import InputError

Scalar = int | float | bool | str
"""What an option may be."""

STRIDE = 16
"""Pixels of a picture a side for each position of y: g_a halves it four times."""

KEEP_GDN = "gdn"
"""The block that replaces nothing: the baseline. It is no entry of the registry and has no options."""

BUILT_IN = frozenset({KEEP_GDN, "gate", "gate_mlp", "gdnish", "relu", "relu_mlp"})
"""The blocks that need no plugin, for programs that import none of them; a test holds it against the registry."""

TRANSFORMS = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}
"""The transforms that --replace_parts and --qat_scope name."""


@dataclass(frozen=True)
class BlockChoice:
    """Which block stands in a transform in GDN's place: its name and its options under their public names."""

    name: str = KEEP_GDN
    options: dict[str, Scalar] = field(default_factory=dict)


class Phase(StrEnum):
    """A phase of quantization-aware training."""

    CALIBRATION = "calibration"
    FIXED_SCALE = "fixed_scale"
    EVAL_READY = "eval_ready"
    OFF = "off"

    @property
    def fake_quantizes(self) -> bool:
        """Whether fake quantization is on in this phase."""
        return self in (Phase.FIXED_SCALE, Phase.EVAL_READY)


@dataclass(frozen=True)
class Quantization:
    """How a codec is quantized, and which phase it is in.

    Attributes:
        scope: which transforms are quantized.
        act_observer: how the ranges of activations are learned (`codec.quantization.observers`).
        w_per_channel: weights have a scale for each output channel.
        eval_fakequant: fake quantization stays on in `eval()`.
        phase: the phase of training.
        learning: ranges and scales learn as the phase allows; False: they do not learn any more.
    """

    scope: Literal["encoder", "decoder", "all"]
    act_observer: str = "ema"
    w_per_channel: bool = True
    eval_fakequant: bool = True
    phase: Phase = Phase.CALIBRATION
    learning: bool = True

    @property
    def learns_ranges(self) -> bool:
        """Whether the ranges of activations learn now."""
        return self.learning and self.phase is Phase.CALIBRATION

    @property
    def follows_weights(self) -> bool:
        """Whether the scales of weights follow the weights now."""
        return self.learning and self.phase in (Phase.CALIBRATION, Phase.FIXED_SCALE)


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a codec again."""

    N: int
    M: int
    g_a: BlockChoice = BlockChoice()
    g_s: BlockChoice = BlockChoice()
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Raises InputError for widths that no codec has."""
        if self.N < 1 or self.M < 1:
            raise InputError(f"N={self.N}, M={self.M}: a codec has at least one channel")

    def in_short(self) -> str:
        """What the codec computes in `eval()`, in a few words: "encoder relu in int8, decoder relu"."""
        words = {"encoder": self.g_a.name, "decoder": self.g_s.name}
        q = self.quantization
        if q and q.eval_fakequant and q.phase.fake_quantizes:
            words |= {part: f"{words[part]} in int8" for part in words if q.scope in (part, "all")}
        return ", ".join(f"{part} {block}" for part, block in words.items())
