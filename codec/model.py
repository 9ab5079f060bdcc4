"""The codec: CompressAI's bmshj2018_factorized with its GDN layers replaced, and what of it trains."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from codec.blocks import KEEP_GDN, activation, make_options
from codec.entropy import TABLES, Bottleneck
from codec.errors import InputError
from codec.hub import PretrainedMixin
from codec.quant import FAKE_QUANTIZING, INT8, TRANSFORMS, Phase, Quantization, prepare, quantizer_state
from codec.quant_layers import QuantizedLayer
from codec.quantizers import Switches

ENTROPY_MODEL = ("entropy_bottleneck",)
HYPER = (*ENTROPY_MODEL, "h_a", "h_s")


@dataclass(frozen=True)
class Activation:
    """One transform's activation: the block's name and its options under their public names."""

    name: str = KEEP_GDN
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a codec again: widths, the activation of each transform, and its quantization."""

    N: int
    M: int
    g_a: Activation = Activation()
    g_s: Activation = Activation()
    quantization: Quantization | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Architecture":
        """The inverse of `dataclasses.asdict`."""
        quantization = values.get("quantization")
        if quantization:
            quantization = Quantization(**quantization | {"phase": Phase(quantization["phase"])})
        return cls(values["N"], values["M"], Activation(**values["g_a"]), Activation(**values["g_s"]), quantization)

    def in_short(self) -> str:
        """What it computes in `eval()`, in a few words: int8 where fake quantization is on."""
        words = {"encoder": self.g_a.name, "decoder": self.g_s.name}
        q = self.quantization
        if q and q.eval_fakequant and q.phase in FAKE_QUANTIZING:
            words |= {part: f"{words[part]} in int8" for part in words if q.scope in (part, "all")}
        return ", ".join(f"{part} {block}" for part, block in words.items())


class Codec(FactorizedPrior, PretrainedMixin):
    """`FactorizedPrior` (Balle et al. 2018, arXiv:1802.01436) with a bottleneck that compiles, and replaceable GDNs.

    With GDN kept, its state dict is CompressAI's own, key for key.

    Attributes:
        architecture: what it is made of now.
        switches: those of its quantizers, where it is quantized (`codec.quant`).
        calibrated_from: the float codec whose files it writes and reads, after post-training quantization, which gives
            it weights of its own (in a tuple, so that it is no submodule).
    """

    switches: Switches | None = None
    calibrated_from: "tuple[Codec] | None" = None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.N, architecture.M)
        self.entropy_bottleneck = Bottleneck(architecture.M)
        self.architecture = Architecture(architecture.N, architecture.M)
        for part in ("g_a", "g_s"):
            self.replace_activations(part, getattr(architecture, part))
        if architecture.quantization:
            prepare(self, architecture.quantization)

    def forward(self, x: Tensor, keys: Tensor | None = None, detach_rate: bool = False) -> dict[str, Any]:
        """One pass through encoder, entropy model and decoder.

        Args:
            x: pictures [B, 3, H, W] in [0, 1], H and W multiples of 16.
            keys: int64 [B], noise keys (training); None rounds (evaluation).
            detach_rate: no gradient from the rate to the transforms.

        Returns:
            `x_hat` [B, 3, H, W], `likelihoods` {"y": [B, M, H/16, W/16]}, and `aux_loss`, which is computed here,
            inside the forward that DDP and FSDP wrap, so that one backward reduces every gradient.
        """
        y = self.g_a(x)
        y_hat, likelihoods, aux_loss = self.entropy_bottleneck(y, keys, detach_rate)
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}, "aux_loss": aux_loss}

    def replace_activations(self, part: str, new: Activation) -> None:
        """Puts fresh blocks in the place of a transform's activations.

        Args:
            part: "g_a" or "g_s".
            new: the block; GDN keeps what is there.

        Raises:
            InputError: an unknown block, impossible options, or GDN asked of a transform that has lost it.
        """
        old: Activation = getattr(self.architecture, part)
        if new == old:
            return
        if new.name == KEEP_GDN:
            raise InputError(
                f"{part} has {old.name} where --act {KEEP_GDN} would keep GDN; name --act {old.name}, or start from a "
                "checkpoint that still has its GDN"
            )
        block = activation(new.name)
        options = make_options(new.name, new.options)
        form = block.encoder if part == "g_a" else block.decoder
        transform = getattr(self, part)
        for i in range(1, len(transform), 2):  # conv, activation, conv, activation, conv, activation, conv
            transform[i] = form(self.N, options)
        self.architecture = replace(self.architecture, **{part: new})  # type: ignore[arg-type]

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict strictly, whatever the sizes of its CDF tables.

        Raises:
            InputError: it belongs to another architecture.
        """
        bottleneck = self.entropy_bottleneck
        own = self.state_dict()
        state = dict(state)
        for table in TABLES:
            key = f"entropy_bottleneck.{table}"
            state.setdefault(key, own[key].new_empty(0))  # a state to train from may carry no tables
            bottleneck.register_buffer(table, torch.empty_like(state[key], device=own[key].device))
            own[key] = state[key]
        wrong = sorted(own.keys() ^ state.keys()) + sorted(
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        )
        if wrong:
            raise InputError(
                f"the weights are of another architecture than N={self.N}, M={self.M}, encoder "
                f"{self.architecture.g_a.name}, decoder {self.architecture.g_s.name}: {len(wrong)} tensors differ, the "
                f"first is {wrong[0]}; check --quality, --N/--M and --act"
            )
        nn.Module.load_state_dict(self, state)
        self.limit_symbols()

    def update(self, *args: Any, **kwargs: Any) -> bool:
        """CompressAI's: builds the CDF tables, from which it follows whether the symbols fit 8 bits."""
        changed: bool = super().update(*args, **kwargs)
        self.limit_symbols()
        return changed

    def limit_symbols(self) -> None:
        """Clamps the symbols to 8 bits where the codec is quantized and its tables' symbols fit; see `codec.quant`."""
        on = self.switches is not None and self.switches.quantize and self.switches.in_eval
        self.entropy_bottleneck.symbol_limits = INT8 if on and self.entropy_bottleneck.symbols_fit(*INT8) else None
        first = self.g_s.get_submodule("0")
        if isinstance(first, QuantizedLayer):
            first.latent_of = (self.entropy_bottleneck,) if self.entropy_bottleneck.symbol_limits else None

    def without_quantization(self) -> "Codec":
        """A float codec of the same weights."""
        codec = Codec(replace(self.architecture, quantization=None))
        added = quantizer_state(self)
        codec.load_weights({name: tensor for name, tensor in self.state_dict().items() if name not in added})
        return codec.train(self.training)


def zoo_widths(quality: int) -> tuple[int, int]:
    """(N, M) of bmshj2018_factorized in CompressAI's zoo at quality 1..8."""
    return (128, 192) if quality <= 5 else (192, 320)


def zoo_state(quality: int) -> dict[str, Tensor]:
    """The zoo's weights of bmshj2018_factorized (MSE), downloaded once into torch's hub cache.

    Raises:
        InputError: they cannot be downloaded.
    """
    from compressai.zoo import bmshj2018_factorized

    try:
        state: dict[str, Tensor] = bmshj2018_factorized(quality, pretrained=True, progress=False).state_dict()
    except OSError as error:  # URLError and every time-out below it
        raise InputError(
            f"--pretrained true: CompressAI's weights of quality {quality} cannot be downloaded ({error}); use "
            "--pretrained false to start from random weights or --init_checkpoint FILE to start from a file"
        ) from error
    return state


def trainable_modules(codec: Codec, replace_parts: str, train_scope: str) -> list[str]:
    """Names of the top-level modules that a scope trains; those that a model lacks are left out."""
    if train_scope == "all":
        return [name for name, _ in codec.named_children()]
    extra = {"replaced": (), "replaced+entropy": ENTROPY_MODEL, "replaced+hyper": HYPER}[train_scope]
    return [name for name, _ in codec.named_children() if name in (*TRANSFORMS[replace_parts], *extra)]


def set_trainable(codec: Codec, modules: list[str], train_quantiles: bool) -> None:
    """Lets only these modules have gradients, and the quantiles only where the auxiliary loss trains them."""
    codec.requires_grad_(False)
    for name in modules:
        codec.get_submodule(name).requires_grad_(True)
    codec.entropy_bottleneck.quantiles.requires_grad_(train_quantiles and "entropy_bottleneck" in modules)


def gdn_layers(codec: nn.Module) -> Iterator[tuple[str, GDN]]:
    """The GDN and IGDN layers that are left, by name."""
    return ((name, module) for name, module in codec.named_modules() if isinstance(module, GDN))
