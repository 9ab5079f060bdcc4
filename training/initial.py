"""The weights that a run starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from codec.cli import OptionGroup, at_least, option
from codec.description.architecture import DEFAULT_ARCH, MOST_RATES, Architecture
from codec.errors import InputError

if TYPE_CHECKING:
    from codec.network.codec import Codec


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    arch: Literal["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"] | None = option(
        None, "architecture of the codec", shown=f"{DEFAULT_ARCH}, or the checkpoint's", decides=True
    )
    rates: int | None = option(
        None,
        "trained rates of one codec, which then codes at every rate between them too; 1: one rate",
        rule=(lambda value: 1 <= value <= MOST_RATES, f"must be within 1..{MOST_RATES}"),
        shown="1, or the checkpoint's",
        decides=True,
    )
    quality: int = option(
        8, "quality of the zoo's weights, 1..8", rule=(range(1, 9).__contains__, "must be within 1..8"), decides=True
    )
    pretrained: bool = option(True, "start from CompressAI's zoo weights (needs the internet once)", decides=True)
    init_checkpoint: str | None = option(
        None, "start from this checkpoint: ours, a CompressAI .pth.tar, or 'sample': the embedded codec", metavar="FILE"
    )
    klt_start: bool = option(
        False,
        "with --pretrained false: begin as a transform coder, the Karhunen-Loeve transform of training crops",
        decides=True,
    )
    N: int | None = option(None, "channels between the layers", rule=at_least(1), shown="the quality's", decides=True)
    M: int | None = option(None, "channels of the latent y", rule=at_least(1), shown="the quality's", decides=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_checkpoint and self.pretrained:
            raise InputError(
                "--init_checkpoint and --pretrained true both name the first weights: drop --pretrained true"
            )
        if self.klt_start and (self.init_checkpoint or self.pretrained):
            raise InputError("--klt_start true replaces trained weights: add --pretrained false, or leave it out")
        if (self.N is None) != (self.M is None):
            given, missing = ("N", "M") if self.M is None else ("M", "N")
            raise InputError(f"--{given} without --{missing}: the widths go together, give both or neither")
        if self.N is not None and self.pretrained:
            raise InputError(
                f"--N {self.N} --M {self.M}: the zoo has no weights of other widths, add --pretrained false"
            )


def initial_codec(model: ModelOptions) -> "Codec":
    """The codec with its first weights: from a checkpoint, from the zoo, or random.

    Raises:
        InputError: the checkpoint cannot be read or contradicts --N and --M; the zoo's weights cannot be downloaded.
    """
    from codec.checkpoint import load_initial
    from codec.checkpoint.zoo import zoo_state
    from codec.network.architectures import new_codec

    if model.init_checkpoint:
        try:
            codec = load_initial(Path(model.init_checkpoint))
        except InputError as error:
            raise InputError(f"--init_checkpoint {error}") from error
        if model.N and (model.N, model.M) != (codec.N, codec.M):
            raise InputError(
                f"--init_checkpoint {model.init_checkpoint} has N={codec.N}, M={codec.M}, not --N {model.N} "
                f"--M {model.M}; leave --N and --M out"
            )
        if model.arch and model.arch != codec.arch:
            raise InputError(
                f"--init_checkpoint {model.init_checkpoint} is a {codec.arch}, not --arch {model.arch}; leave "
                "--arch out"
            )
        if model.rates and codec.architecture.rates not in (1, model.rates):
            raise InputError(
                f"--init_checkpoint {model.init_checkpoint} has {codec.architecture.rates} rates, not --rates "
                f"{model.rates}; leave --rates out"
            )
        return codec
    codec = new_codec(random_architecture(model))
    if model.pretrained:
        codec.load_weights(zoo_state(model.quality, codec.arch))
    return codec


def random_architecture(model: ModelOptions) -> Architecture:
    """The architecture of --arch with the widths of --N and --M, or of --quality, with all GDNs."""
    from codec.checkpoint.zoo import zoo_widths

    arch = model.arch or DEFAULT_ARCH
    widths = (model.N, model.M) if model.N and model.M else zoo_widths(model.quality, arch)
    return Architecture(*widths, arch=arch)
