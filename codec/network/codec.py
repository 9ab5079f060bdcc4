"""The codec: CompressAI's bmshj2018_factorized with replaceable GDN layers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from codec.bitstream.tables import Tables
from codec.blocks import new_block
from codec.description.architecture import KEEP_GDN, Architecture, BlockChoice
from codec.errors import InputError
from codec.network.bottleneck import TABLES, Bottleneck


class Codec(FactorizedPrior):
    """`FactorizedPrior` (Balle et al. 2018, arXiv:1802.01436) with a bottleneck that compiles, and replaceable GDNs.

    With GDN, its state dict has the same keys as CompressAI's. `codec.quantization.phases.build` makes a quantized one.

    Attributes:
        architecture: its present architecture.
        calibrated_tables: after post-training quantization, the tables of the float codec, whose files this codec
            writes and reads; its own weights give another fingerprint. None otherwise.
    """

    calibrated_tables: Tables | None = None

    def __init__(self, architecture: Architecture) -> None:
        """Builds the float codec; it does not apply the architecture's quantization."""
        super().__init__(architecture.N, architecture.M)
        self.entropy_bottleneck = Bottleneck(architecture.M)
        self.architecture = Architecture(architecture.N, architecture.M)
        for part in ("g_a", "g_s"):
            self.replace_blocks(part, getattr(architecture, part))

    def forward(self, x: Tensor, keys: Tensor | None = None, detach_rate: bool = False) -> dict[str, Any]:
        """One pass through encoder, entropy model and decoder.

        Args:
            x: pictures [B, 3, H, W] in [0, 1], H and W multiples of 16.
            keys: int64 [B], noise keys (training); None rounds (evaluation).
            detach_rate: the rate gives the transforms no gradient.

        Returns:
            `x_hat` [B, 3, H, W], `likelihoods` {"y": [B, M, H/16, W/16]}, and `aux_loss`. DDP and FSDP wrap this
            forward; since `aux_loss` is computed inside it, one backward reduces all gradients.
        """
        y = self.g_a(x)
        y_hat, likelihoods, aux_loss = self.entropy_bottleneck(y, keys, detach_rate)
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}, "aux_loss": aux_loss}

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
        """Loads a state dict strictly; only the sizes of the CDF tables may differ.

        Raises:
            InputError: the state dict belongs to another architecture, or has CDF tables of another form.
        """
        bottleneck = self.entropy_bottleneck
        own = self.state_dict()
        state = dict(state)
        _check_tables(state, self.M)
        for table in TABLES:
            key = f"entropy_bottleneck.{table}"
            state.setdefault(key, own[key].new_empty(0))  # a state to train from may have no tables
            bottleneck.register_buffer(table, torch.empty_like(state[key], device=own[key].device))
            own[key] = state[key]
        wrong = sorted(own.keys() ^ state.keys()) + sorted(
            key
            for key in own.keys() & state.keys()
            if (own[key].shape, own[key].dtype) != (state[key].shape, state[key].dtype)
        )
        if wrong:
            raise InputError(
                f"the weights are of another architecture than N={self.N}, M={self.M}, encoder "
                f"{self.architecture.g_a.name}, decoder {self.architecture.g_s.name}: tensors that differ in name, "
                f"shape or type: {len(wrong)}, the first {wrong[0]}; check --quality, --N/--M and --act"
            )
        nn.Module.load_state_dict(self, state)
        bottleneck.limit_symbols()


def _check_tables(state: dict[str, Tensor], channels: int) -> None:
    """Raises InputError for CDF tables that are not int32 [M, L], [M], [M], or empty. Values are not checked."""
    tables = [state[key] for name in TABLES if (key := f"entropy_bottleneck.{name}") in state]
    if not any(table.numel() for table in tables):
        return
    forms = [(table.dim(), len(table) if table.dim() else 0, table.dtype) for table in tables]
    if forms != [(rank, channels, torch.int32) for rank in (2, 1, 1)]:
        found = ", ".join(f"{table.dtype} {list(table.shape)}".removeprefix("torch.") for table in tables)
        raise InputError(f"CDF tables of {channels} channels are int32 [M, L], [M] and [M], and these are {found}")


def gdn_layers(codec: nn.Module) -> Iterator[tuple[str, GDN]]:
    """The remaining GDN and IGDN layers, by name."""
    return ((name, module) for name, module in codec.named_modules() if isinstance(module, GDN))
