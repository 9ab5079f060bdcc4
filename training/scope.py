"""Which blocks replace GDN, and which parts of a codec train."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from codec.blocks import registry
from codec.cli import NOT_NEGATIVE, OptionGroup, option
from codec.description.architecture import TRANSFORMS

if TYPE_CHECKING:
    from codec.network.codec import Codec

TRAINED_WITH_ENTROPY = ("entropy_bottleneck", "gaussian_conditional", "y_gains", "z_gains")
HYPER = (*TRAINED_WITH_ENTROPY, "h_a", "h_s")


@dataclass(frozen=True)
class ReplacementOptions(OptionGroup):
    act: str = option("relu", "block that replaces GDN (gdn keeps it)", values=registry.block_names, decides=True)
    replace_parts: Literal["encoder", "decoder", "all"] = option(
        "encoder", "transforms whose GDN is replaced", decides=True
    )
    train_scope: Literal["replaced+hyper", "replaced", "replaced+entropy", "all"] = option(
        "replaced+hyper",
        "what trains: transforms whose GDN is replaced; +entropy: entropy models too; +hyper: h_a and h_s too; or all",
        decides=True,
    )
    plugin: str | None = option(None, "Python file that registers blocks of your own", metavar="FILE")
    distill_steps: int = option(
        0,
        "iterations in which every new block first learns to approximate its GDN; 0: none",
        rule=NOT_NEGATIVE,
        decides=True,
    )


def trainable_modules(codec: "Codec", replace_parts: str, train_scope: str) -> list[str]:
    """Names of the top-level modules that a scope trains; modules that the codec lacks are left out."""
    if train_scope == "all":
        return [name for name, _ in codec.named_children()]
    extra = {"replaced": (), "replaced+entropy": TRAINED_WITH_ENTROPY, "replaced+hyper": HYPER}[train_scope]
    return [name for name, _ in codec.named_children() if name in (*TRANSFORMS[replace_parts], *extra)]


def set_trainable(codec: "Codec", modules: list[str], train_quantiles: bool) -> None:
    """Sets requires_grad: only for these modules, and for the quantiles only if the auxiliary loss trains them."""
    codec.requires_grad_(False)
    for name in modules:
        codec.get_submodule(name).requires_grad_(True)
    codec.entropy_bottleneck.quantiles.requires_grad_(train_quantiles and "entropy_bottleneck" in modules)
