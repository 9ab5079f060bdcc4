"""A codec: CompressAI's transforms with replaceable GDN layers, around the entropy models of its architecture."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codec.bitstream.tables import AnyTables
from codec.blocks import new_block
from codec.compressai import GDN, CompressionModel
from codec.description.architecture import KEEP_GDN, Architecture, BlockChoice
from codec.description.file import Arrays
from codec.errors import InputError
from codec.network.bottleneck import TABLES, Bottleneck
from codec.network.density import SampledDensity
from codec.network.gains import Gains
from codec.network.latent import LatentModel


class Codec(CompressionModel, ABC):
    """What all architectures share. A class of an architecture derives from this one and from CompressAI's model.

    With GDN, its state dict has the same keys as CompressAI's. `codec.network.architectures.new_codec` makes a codec,
    and `codec.quantization.phases.build` a quantized one.

    Attributes:
        architecture: its present architecture.
        entropy_bottleneck: the entropy model of y, or of z in an architecture with a hyperprior.
        calibrated_tables: after post-training quantization, the tables of the float codec, whose files this codec
            writes and reads; its own weights give another fingerprint. None otherwise.
        y_gains: the gains of y in a codec with several rates; None: it has one rate.
        density: only with several rates, the density of the entropy bottleneck in integers.
    """

    arch: ClassVar[str]
    """Name of the architecture."""

    has_means: ClassVar[bool] = False
    """Whether a hyperprior predicts means of y."""

    N: int
    M: int
    g_a: Any  # an nn.Sequential, or a graph with quantizers
    g_s: Any
    entropy_bottleneck: Bottleneck
    calibrated_tables: AnyTables | None = None
    y_gains: Gains | None
    density: SampledDensity

    def __init__(self, architecture: Architecture) -> None:
        """Builds the float codec; it does not apply the architecture's quantization."""
        super().__init__(architecture.N, architecture.M)
        self.entropy_bottleneck = Bottleneck(self.entropy_bottleneck.channels)
        self.architecture = Architecture(architecture.N, architecture.M, arch=self.arch)
        self.y_gains = None
        for part in ("g_a", "g_s"):
            self.replace_blocks(part, getattr(architecture, part))

    def forward(
        self, x: Tensor, keys: Tensor | None = None, detach_rate: bool = False, rates: Tensor | None = None
    ) -> dict[str, Any]:
        """One pass through encoder, entropy models and decoder.

        Args:
            x: pictures [B, 3, H, W] in [0, 1], H and W multiples of 16.
            keys: int64 [B], noise keys (training); None rounds (evaluation).
            detach_rate: the rate gives the transforms no gradient.
            rates: [B], the rate of each picture, from 0, the lowest, to 1; None: the highest, which is the only one of
                most codecs.

        Returns:
            `x_hat` [B, 3, H, W], `likelihoods` {"y": [B, M, H/16, W/16]} and, with a hyperprior, "z": [B, N, ..], and
            `aux_loss`. DDP and FSDP wrap this forward; since `aux_loss` is computed inside it, one backward reduces
            all gradients.
        """
        y_hat, likelihoods, aux_loss = self.quantize(self.g_a(x), keys, detach_rate, rates)
        return {"x_hat": self.g_s(y_hat), "likelihoods": likelihoods, "aux_loss": aux_loss}

    @abstractmethod
    def quantize(
        self, y: Tensor, keys: Tensor | None, detach_rate: bool, rates: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """y_hat, the likelihoods by name, and the auxiliary loss of y; the arguments are those of `forward`."""

    @property
    @abstractmethod
    def y_model(self) -> LatentModel:
        """The entropy model of y."""

    @property
    def entropy_models(self) -> dict[str, LatentModel]:
        """The entropy model of each transform's output that is coded: y of g_a, and with a hyperprior z of h_a."""
        return {"g_a": self.y_model}

    def is_quantized(self, part: str) -> bool:
        """Whether g_a, h_a or g_s is quantized."""
        quantization = self.architecture.quantization
        return quantization is not None and part in quantization.transforms

    def has_symbols(self, part: str) -> bool:
        """Whether g_a or h_a in int8 gives symbols, or g_s takes them, in `eval()`; otherwise its latent is float."""
        model = self.entropy_models.get(part, self.y_model)
        return self.is_quantized(part) and model.symbol_limits is not None

    def has_levels(self, part: str) -> bool:
        """Whether g_a in int8 gives levels of y (`codec.quantization.levels`), or h_a and g_s take them."""
        return self.y_model.in_levels and self.is_quantized(part)

    def refresh_tables(self) -> None:
        """Rebuilds from the weights, in place, all that coding needs: medians and CDF tables.

        Bisection finds the quantiles to 1e-3, even if the auxiliary loss has not converged. Stale CDF tables are the
        most common reason why files are larger than their likelihoods say.

        Raises:
            InputError: a parameter of the entropy model is not finite, or a density is too wide for a table.
        """
        checked = {name: p for name, p in self.named_parameters() if not name.startswith(("g_a.", "g_s."))}
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in checked.values()])
        for name, is_finite in zip(checked, finite.tolist(), strict=True):  # one wait for the device, not one of each
            if not is_finite:
                raise InputError(f"{name} of this codec is not finite; start from an earlier checkpoint")
        self.entropy_bottleneck.rebuild()
        if self.y_gains is not None:
            self.y_gains.refresh()
            self.density.refresh(self.entropy_bottleneck)

    def add_rates(self, rates: int, octaves: float = 0.0) -> None:
        """Makes it a codec of several rates, in place; its present weights become those of the highest rate.

        Args:
            rates: R, the trained rates, 2 or more.
            octaves: how much smaller the gains of the lowest rate begin, in factors of two.
        """
        self.architecture = replace(self.architecture, rates=rates)
        device = self.entropy_bottleneck.quantiles.device
        self.y_gains = Gains(rates, self.M, octaves).to(device)
        self.density = SampledDensity(self.entropy_bottleneck.channels).to(device)
        self.y_model.in_levels = True

    def forget_tables(self) -> None:
        """Drops, in place, what `refresh_tables` builds beside the medians: it is of no use once the weights change."""
        tables = self.table_names()
        self.load_weights({name: tensor for name, tensor in self.state_dict().items() if name not in tables})

    def coding_arrays(self) -> Arrays:
        """What coding needs beside the state dict, by name, to store in a checkpoint."""
        return {}

    def load_coding_arrays(self, arrays: Arrays) -> None:
        """Takes the arrays of `coding_arrays` back; call it after `load_weights`.

        Raises:
            InputError: they do not belong to these weights.
        """
        if arrays:
            raise InputError(f"{self.arch} codes without {', '.join(sorted(arrays)[:3])}; use another checkpoint")

    def replace_blocks(self, part: str, new: BlockChoice) -> None:
        """Replaces a transform's GDNs, or its present blocks, with new blocks.

        Args:
            part: "g_a" or "g_s".
            new: the new block; with GDN nothing changes.

        Raises:
            InputError: the block is unknown, its options are impossible, or GDN is wanted where it was replaced.
        """
        old: BlockChoice = getattr(self.architecture, part)
        if new == old:
            return
        if new.name == KEEP_GDN:
            raise InputError(
                f"{part} has {old.name} where --act {KEEP_GDN} would keep GDN; name --act {old.name}, or start from a "
                "checkpoint that still has its GDN"
            )
        transform = getattr(self, part)
        for i in range(1, len(transform), 2):  # conv, block, conv, block, conv, block, conv
            transform[i] = new_block(new, "encoder" if part == "g_a" else "decoder", self.N)
        self.architecture = replace(self.architecture, **{part: new})  # type: ignore[arg-type]

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict strictly; only the sizes of the tables may differ.

        Raises:
            InputError: the state dict belongs to another architecture, or has CDF tables of another form.
        """
        own = self.state_dict()
        state = dict(state)
        check_tables(state, "entropy_bottleneck", self.entropy_bottleneck.channels, "channels")
        for key in self.table_names():
            module, _, name = key.rpartition(".")
            state.setdefault(key, own[key].new_empty(0))  # a state to train from may have no tables
            self.get_submodule(module).register_buffer(name, torch.empty_like(state[key], device=own[key].device))
            own[key] = state[key]
        for name, layer in self.named_modules():
            for buffer in getattr(layer, "ONES_IN_EARLIER_CHECKPOINTS", ()):
                state.setdefault(f"{name}.{buffer}", torch.ones_like(own[f"{name}.{buffer}"]))
        wrong = sorted(own.keys() ^ state.keys()) + sorted(
            key
            for key in own.keys() & state.keys()
            if (own[key].shape, own[key].dtype) != (state[key].shape, state[key].dtype)
        )
        if wrong:
            raise InputError(
                f"the weights are of another architecture than {self.arch}, N={self.N}, M={self.M}, encoder "
                f"{self.architecture.g_a.name}, decoder {self.architecture.g_s.name}: tensors that differ in name, "
                f"shape or type: {len(wrong)}, the first {wrong[0]}; check --arch, --quality, --N/--M and --act"
            )
        nn.Module.load_state_dict(self, state)
        for model in self.entropy_models.values():
            model.limit_symbols()

    def table_names(self) -> list[str]:
        """The state-dict keys of the tables, whose sizes depend on the weights."""
        return [f"entropy_bottleneck.{name}" for name in TABLES]


def check_tables(state: dict[str, Tensor], model: str, rows: int, what: str) -> None:
    """Raises InputError for CDF tables of a model that are not int32 [R, L], [R], [R], or empty; not for other values.

    Args:
        what: a word for what has a row.
    """
    tables = [state[key] for name in TABLES if (key := f"{model}.{name}") in state]
    if not any(table.numel() for table in tables):
        return
    forms = [(table.dim(), len(table) if table.dim() else 0, table.dtype) for table in tables]
    if forms != [(rank, rows, torch.int32) for rank in (2, 1, 1)]:
        found = ", ".join(f"{table.dtype} {list(table.shape)}".removeprefix("torch.") for table in tables)
        raise InputError(
            f"CDF tables of {rows} {what} are int32 [{rows}, L], [{rows}] and [{rows}], and these are {found}"
        )


def gdn_layers(codec: nn.Module) -> Iterator[tuple[str, GDN]]:
    """The remaining GDN and IGDN layers, by name."""
    return ((name, module) for name, module in codec.named_modules() if isinstance(module, GDN))
