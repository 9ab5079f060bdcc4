"""A codec's architecture as plain data: widths, the block of each transform, and how it is quantized."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from codec.errors import InputError

Scalar = int | float | bool | str
"""The types of a block's option."""

STRIDE = 16
"""Pixels of a picture a side for each position of y: g_a halves it four times."""

KEEP_GDN = "gdn"
"""The baseline, which keeps GDN. It is not in the registry and has no options."""

BUILT_IN = frozenset({KEEP_GDN, "gate", "gate_mlp", "gdnish", "relu", "relu_mlp"})
"""The blocks that need no plugin, for programs that do not import them; a test compares the list with the registry."""

ARCHITECTURES = ("bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean")
"""The architectures, under their names in CompressAI's zoo."""

DEFAULT_ARCH = ARCHITECTURES[0]

MOST_RATES = 64
"""Most trained rates of a codec."""

MOST_SPLITS = 8
"""Most channels of a chip that hold one channel of y together (`codec.quantization.levels`)."""

TRANSFORMS = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}
"""The transforms that --replace_parts and --qat_scope name."""


@dataclass(frozen=True)
class BlockChoice:
    """The block that replaces GDN in a transform: its name, and its options under their public names."""

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
    """How a codec is quantized, and its phase of training.

    Attributes:
        scope: the transforms that are quantized.
        act_observer: name of the observer that learns the ranges of activations (`codec.quantization.observers`).
        w_per_channel: weights have one scale per output channel; False: one scale per layer.
        eval_fakequant: fake quantization stays on in `eval()`.
        phase: the phase of training.
        learning: ranges and scales learn when the phase allows it; False: they stay fixed.
        hyper: h_a is quantized too; the scope includes the encoder.
        a16: globs of names of activation tensors that have 16 bits, comma-separated; the others have 8.
    """

    scope: Literal["encoder", "decoder", "all"]
    act_observer: str = "ema"
    w_per_channel: bool = True
    eval_fakequant: bool = True
    phase: Phase = Phase.CALIBRATION
    learning: bool = True
    hyper: bool = False
    a16: str = ""

    def __post_init__(self) -> None:
        """Raises InputError if h_a is quantized without the encoder."""
        if self.hyper and self.scope == "decoder":
            raise InputError("h_a cannot be quantized without the encoder, whose output it reads")

    @property
    def transforms(self) -> tuple[str, ...]:
        """The names of the quantized transforms, in the order in which a codec calls them."""
        parts = TRANSFORMS[self.scope]
        return (parts[0], "h_a", *parts[1:]) if self.hyper else parts

    @property
    def learns_ranges(self) -> bool:
        """Whether the ranges of activations learn in this phase."""
        return self.learning and self.phase is Phase.CALIBRATION

    @property
    def follows_weights(self) -> bool:
        """Whether the scales of weights follow the weights in this phase."""
        return self.learning and self.phase in (Phase.CALIBRATION, Phase.FIXED_SCALE)


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to rebuild a codec.

    Attributes:
        N: channels between the layers.
        M: channels of y.
        arch: one of `ARCHITECTURES`.
        rates: trained rates; with more than one, the codec has gains.
    """

    N: int
    M: int
    g_a: BlockChoice = BlockChoice()
    g_s: BlockChoice = BlockChoice()
    quantization: Quantization | None = None
    arch: str = DEFAULT_ARCH
    rates: int = 1

    def __post_init__(self) -> None:
        """Raises InputError for widths below 1, for an unknown architecture, and for too many rates."""
        if self.N < 1 or self.M < 1:
            raise InputError(f"N={self.N}, M={self.M}: a codec has at least one channel")
        if self.arch not in ARCHITECTURES:
            raise InputError(f"architecture {self.arch!r}: not one of {', '.join(ARCHITECTURES)}")
        if not 1 <= self.rates <= MOST_RATES:
            raise InputError(f"{self.rates} rates: a codec has 1 to {MOST_RATES}")
        if self.quantization and self.quantization.hyper and self.arch == DEFAULT_ARCH:
            raise InputError(f"h_a cannot be quantized: {self.arch} does not have it")

    def as_dict(self) -> dict[str, Any]:
        """As files have it. Without 16-bit activations `a16` is left out, as in files from before it existed."""
        return asdict(self, dict_factory=lambda pairs: {name: x for name, x in pairs if (name, x) != ("a16", "")})

    def in_short(self) -> str:
        """What the codec computes in `eval()`, with the architecture if it is not the default one.

        For example "encoder relu in int8, decoder relu", or "mbt2018_mean, encoder gate, decoder gdn".
        """
        words = {"encoder": self.g_a.name, "decoder": self.g_s.name}
        q = self.quantization
        if q and q.eval_fakequant and q.phase.fake_quantizes:
            words |= {part: f"{words[part]} in int8" for part in words if q.scope in (part, "all")}
            words |= {"h_a": "in int8"} if q.hyper else {}
        named = [] if self.arch == DEFAULT_ARCH else [self.arch]
        named += [] if self.rates == 1 else [f"{self.rates} rates"]
        return ", ".join([*named, *(f"{part} {block}" for part, block in words.items())])
