"""Which parts of a codec train."""

from codec.description.architecture import TRANSFORMS
from codec.network.codec import Codec

ENTROPY_MODEL = ("entropy_bottleneck",)
HYPER = (*ENTROPY_MODEL, "h_a", "h_s")


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
