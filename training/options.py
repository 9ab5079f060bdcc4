"""Every option of the training program, and the command line and the YAML file that give them."""

import dataclasses
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from coco224.repository import is_repository
from codec import STRIDE
from codec.blocks import registry
from codec.cli import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, ArgumentParser, OptionGroup, at_least, expanded, option
from codec.errors import InputError
from training import recipe
from training.objective import min_input_size


@dataclass(frozen=True)
class ReplacementOptions(OptionGroup):
    act: str = option("relu", "what replaces GDN (gdn keeps it)", values=registry.block_names)
    replace_parts: Literal["encoder", "decoder", "all"] = option("encoder", "whose GDNs are replaced")
    train_scope: Literal["replaced+hyper", "replaced", "replaced+entropy", "all"] = option(
        "replaced+hyper", "what trains: the replaced parts, with or without the entropy model"
    )
    plugin: str | None = option(None, "Python file that registers blocks of your own", metavar="FILE")
    distill_steps: int = option(
        0, "iterations by which each new block first learns its GDN's map; 0: it starts as it is", rule=NOT_NEGATIVE
    )


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    quality: int = option(8, "the zoo's quality, 1..8", rule=(range(1, 9).__contains__, "the zoo's qualities are 1..8"))
    pretrained: bool = option(True, "start from CompressAI's zoo weights, which need the internet")
    init_checkpoint: str | None = option(
        None,
        "start from this checkpoint instead: ours, or a CompressAI .pth.tar",
        metavar="FILE",
    )
    N: int | None = option(None, "channels between the layers", rule=at_least(1), shown="the quality's")
    M: int | None = option(None, "channels of the latent y", rule=at_least(1), shown="the quality's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_checkpoint and self.pretrained:
            raise InputError(
                "--init_checkpoint and --pretrained true both name the first weights: drop --pretrained true"
            )
        if (self.N is None) != (self.M is None):
            given, missing = ("N", "M") if self.M is None else ("M", "N")
            raise InputError(f"--{given} without --{missing}: the widths go together, give both or neither")
        if self.N is not None and self.pretrained:
            raise InputError(
                f"--N {self.N} --M {self.M}: the zoo has no weights of other widths, add --pretrained false"
            )


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    coco_dir: str = option(
        "",
        "dataset of coco224.prepare, here or on the Hub (USER/NAME), or a COCO root",
        metavar="DIR",
        shown="required",
    )
    use_prepared: bool = option(True, "false: --coco_dir is a COCO root, cropped on the fly")
    streaming: bool = option(False, "fetch the rows of a dataset on the Hub while training, not before")
    input_size: int = option(
        224,
        "side of the random crop that is taken of each row",
        rule=(
            lambda size: size > 0 and size % STRIDE == 0,
            f"must be a multiple of {STRIDE}, the codec's stride",
        ),
    )
    hflip: bool = option(False, "mirror half of the crops")
    batch_size: int = option(16, "crops per process and step", rule=at_least(1))
    grad_accum: int = option(1, "batches per optimizer step", rule=at_least(1))
    num_workers: int | None = option(
        None, "reading processes a rank", rule=NOT_NEGATIVE, shown="0 for raw rows, else 2"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coco_dir:
            raise InputError(
                "--coco_dir is required: a dataset that `python -m coco224.prepare` made, "
                "or a COCO root with --use_prepared false"
            )
        if self.streaming and not (self.use_prepared and is_repository(self.coco_dir)):
            raise InputError(f"--streaming true with --coco_dir {self.coco_dir}: only a dataset on the Hub streams")
        if self.streaming and self.num_workers:
            raise InputError(f"--num_workers {self.num_workers} with --streaming true: it reads ahead by itself")

    def on_the_hub(self) -> bool:
        """Whether --coco_dir names a dataset on the Hub: a path that exists wins."""
        return self.use_prepared and is_repository(self.coco_dir) and not Path(self.coco_dir).exists()


@dataclass(frozen=True)
class LossOptions(OptionGroup):
    loss_type: Literal["recon", "rd", "mse"] = option(
        "recon", "recon: a*L1+(1-a)*(1-MS-SSIM); rd: recon+lambda_bpp*bpp; mse: lambda_mse*255^2*MSE+bpp"
    )
    alpha_l1: float = option(
        0.4, "a in recon and rd", rule=(lambda value: 0 <= value <= 1, "is a share and must be within 0..1")
    )
    lambda_bpp: float = option(0.01, "weight of the rate in rd", rule=NOT_NEGATIVE)
    lambda_mse: float = option(0.01, "weight of the distortion in mse", rule=POSITIVE)


@dataclass(frozen=True)
class ScheduleOptions(OptionGroup):
    epochs: int = option(10, "passes over the dataset", rule=at_least(1))
    max_steps: int | None = option(None, "optimizer steps, if they end first", rule=at_least(1), shown="no limit")
    lr: float = option(1e-4, "highest learning rate", rule=POSITIVE)
    optimizer: Literal["adam", "adamw"] = option("adam", "optimizer")
    weight_decay: float = option(0.0, "weight decay", rule=NOT_NEGATIVE)
    sched: Literal["cosine", "none", "onecycle", "plateau"] = option("cosine", "learning rate over the run's length")
    onecycle_pct_start: float = option(
        0.1,
        "share of the run in which onecycle rises",
        rule=(lambda value: 0 < value < 1, "is a share of the run and must lie between 0 and 1"),
    )
    lr_warmup_steps: int = option(0, "optimizer steps of linear warm-up; not with onecycle", rule=NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_warmup_steps and self.sched == "onecycle":
            raise InputError(
                f"--lr_warmup_steps {self.lr_warmup_steps} with --sched onecycle, which warms up by itself: "
                "use --onecycle_pct_start"
            )


@dataclass(frozen=True)
class NumericsOptions(OptionGroup):
    amp: bool = option(True, "mixed precision", shown="true; false with --qat true")
    amp_dtype: Literal["bf16", "fp16"] = option("bf16", "its number format")
    local_fp32: Literal["entropy", "none", "entropy+decoder", "all_normexp", "custom"] = option(
        "entropy", "regions that stay in FP32"
    )
    local_fp32_custom: str | None = option(
        None, "globs of module names for --local_fp32 custom, comma-separated", metavar="GLOBS"
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: never", rule=NOT_NEGATIVE)
    overflow_check: bool = option(True, "skip a step with NaN, Inf or too large values, and name the module")
    overflow_tol: float = option(1e4, "largest sane absolute value", rule=POSITIVE)
    overflow_patience: int = option(10, "skipped steps in a row that end the run", rule=at_least(1))
    compile: bool | None = option(None, "torch.compile", shown="per device")
    channels_last: bool | None = option(None, "channels_last memory layout", shown="per device")
    seed: int = option(
        0,
        "seed of weights, order, crops and noise",
        rule=(lambda value: 0 <= value < 2**32, "must be within 0..2^32-1, which NumPy takes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_fp32 == "custom" and not self.local_fp32_custom:
            raise InputError("--local_fp32 custom needs --local_fp32_custom GLOBS: which modules stay in FP32")
        if self.local_fp32_custom is not None and self.local_fp32 != "custom":
            raise InputError(f"--local_fp32_custom {self.local_fp32_custom}: only --local_fp32 custom uses it")


@dataclass(frozen=True)
class EntropyModelOptions(OptionGroup):
    eb_aux: bool = option(True, "train the entropy bottleneck's quantiles with its auxiliary loss")
    eb_aux_lr: float = option(1e-3, "their learning rate", rule=POSITIVE)


@dataclass(frozen=True)
class QatOptions(OptionGroup):
    qat: bool = option(False, "quantization-aware training")
    qat_scope: Literal["encoder", "decoder", "all"] = option("encoder", "which transforms are quantized")
    qat_exclude_entropy: bool = option(True, "keep the entropy model, h_a and h_s out of it")
    qat_calib_steps: int = option(
        2000, "optimizer steps that learn the activations' ranges, before fake quantization begins", rule=NOT_NEGATIVE
    )
    qat_freeze_after: int = option(
        8000, "optimizer step after which the weights' scales are fixed too", rule=NOT_NEGATIVE
    )
    qat_act_observer: Literal["ema", "minmax"] = option(
        "ema", "activations' ranges: a moving average of a picture's, or the widest of all"
    )
    qat_w_per_channel: bool = option(True, "a scale for each output channel of a weight; false: one a layer")
    qat_disable_observer_step: int = option(
        -1, "optimizer step at which all ranges stop learning; -1: when their phase ends", rule=at_least(-1)
    )
    qat_eval_fakequant: bool = option(True, "evaluate with the fake quantization")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qat_freeze_after < self.qat_calib_steps:
            raise InputError(
                f"--qat_freeze_after {self.qat_freeze_after} comes before the end of the calibration, "
                f"--qat_calib_steps {self.qat_calib_steps}: the weights' scales are fixed after the activations' ranges"
            )


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    save_dir: str = option("./checkpoints", "checkpoints and the local record", metavar="DIR", rule=NOT_EMPTY)
    recon_dir: str = option("./recon", "reconstructions", metavar="DIR", rule=NOT_EMPTY)
    recon_every: int = option(2, "epochs between reconstructions; 0: never", rule=NOT_NEGATIVE)
    recon_count: int = option(16, "pictures that are reconstructed", rule=at_least(1))
    eval_every: int = option(1, "epochs between evaluations; 0: never", rule=NOT_NEGATIVE)
    checkpoint_every: int = option(500, "optimizer steps between checkpoints", rule=at_least(1))
    log_every: int = option(10, "optimizer steps between records", rule=at_least(1))
    keep_checkpoints: int = option(2, "states to resume from that are kept", rule=at_least(2))
    full_disk: Literal["continue", "stop"] = option(
        "continue", "what a checkpoint that finds the disk full does to the run"
    )
    resume: str = option("auto", "auto, none, or a saved state", metavar="PATH", rule=NOT_EMPTY)
    overwrite: bool = option(False, "start anew in a --save_dir that holds a run")


@dataclass(frozen=True)
class ReportingOptions(OptionGroup):
    wandb: bool = option(False, "report to Weights & Biases")
    wandb_project: str = option("npu-image-codec", "its project")
    run_name: str | None = option(None, "name of the run in the trackers", shown="from the options")
    wandb_log_model: Literal["false", "end", "checkpoint"] = option(
        "false", "last.safetensors as W&B artifact: never, at the end, at every checkpoint"
    )
    report_to: str | None = option(None, "other Accelerate trackers, comma-separated", metavar="NAMES")
    push_to_hub: bool = option(False, "upload checkpoints to the Hugging Face Hub while training goes on")
    hub_model_id: str | None = option(None, "repository to upload to, made if need be", metavar="USER/NAME")
    hub_private: bool = option(False, "make it private, if it is made now")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise InputError("--push_to_hub true needs --hub_model_id USER/NAME: where the checkpoints go")
        if self.hub_model_id and not is_repository(self.hub_model_id):
            raise InputError(f"--hub_model_id {self.hub_model_id} is no name of a repository: give USER/NAME")
        if self.wandb_log_model != "false" and not self.wandb:
            raise InputError(
                f"--wandb_log_model {self.wandb_log_model} without --wandb true: there is no run to log to"
            )


@dataclass(frozen=True)
class Options:
    """A run, resolved. `block` holds the chosen activation's hyper-parameters, None where it has none."""

    replacement: ReplacementOptions
    model: ModelOptions
    data: DataOptions
    loss: LossOptions
    schedule: ScheduleOptions
    numerics: NumericsOptions
    entropy_model: EntropyModelOptions
    qat: QatOptions
    output: OutputOptions
    reporting: ReportingOptions
    block: Any

    def __post_init__(self) -> None:
        least = min_input_size(self.loss.loss_type)
        if self.data.input_size < least:
            smallest = -(-least // STRIDE) * STRIDE
            raise InputError(
                f"--input_size {self.data.input_size} with --loss_type {self.loss.loss_type}: MS-SSIM needs "
                f"{least} pixels, use --input_size {smallest} or more, or --loss_type mse"
            )
        if self.replacement.distill_steps and not (self.model.pretrained or self.model.init_checkpoint):
            raise InputError(
                f"--distill_steps {self.replacement.distill_steps} learns from a trained GDN, not from random weights: "
                "use --pretrained true, or --init_checkpoint FILE with a GDN codec"
            )
        if self.schedule.sched == "plateau" and not self.output.eval_every:
            raise InputError("--sched plateau follows the validation loss: --eval_every 0 leaves it none")

    def flat(self) -> dict[str, Any]:
        """Every option by its public name, the chosen block's included: what --config loads."""
        values = {name: value for group in _GROUPS for name, value in vars(getattr(self, group)).items()}
        return values | registry.options_dict(self.replacement.act, self.block)

    def command(self) -> str:
        """The run as one command for everyone: every option that is not its default, without those of this machine.

        Of a file its name alone is told, and of a dataset that is not on the Hub nothing.
        """
        fields = _FIELDS | registry.block_options(self.replacement.act)
        values = self.flat()
        if not self.data.on_the_hub():
            values["coco_dir"] = "/path/to/coco224" if self.data.use_prepared else "/path/to/coco2017"
        for name in ("init_checkpoint", "plugin"):
            values[name] = values[name] and Path(values[name]).name
        given = {name: value for name, value in values.items() if value != fields[name].default}
        words = [f"--{name} {shlex.quote(_text(value))}" for name, value in given.items() if name not in _LOCAL]
        return " ".join([COMMAND, *words])


COMMAND = "accelerate launch train_accel.py"
"""What a saved configuration begins with."""

_GROUPS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Options) if field.name != "block"}
_FIELDS = {field.name: field for cls in _GROUPS.values() for field in dataclasses.fields(cls)}
_REMOVED = {"amp_warmup_steps": "was removed: bf16 + local FP32 + LR warm-up + gradient clipping do its job"}
_LOCAL = {"save_dir", "recon_dir", "num_workers", "full_disk", "resume", "overwrite"} | {
    field.name for field in dataclasses.fields(ReportingOptions)
}
_ONLY_WITH = {
    "lambda_mse": ("loss_type", ("mse",)),  # alpha_l1 and lambda_bpp choose best_rd under every loss
    "onecycle_pct_start": ("sched", ("onecycle",)),
    **{field.name: ("qat", (True,)) for field in dataclasses.fields(QatOptions) if field.name != "qat"},
}


def memory_format(options: Options) -> torch.memory_format:
    """Convolutions run faster in channels_last on CPUs (oneDNN) and on tensor cores alike."""
    return torch.contiguous_format if options.numerics.channels_last is False else torch.channels_last


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line and of the --config file that it names, the command line winning.

    Raises InputError for an unknown option, an impossible value or a combination that cannot work.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = ArgumentParser(add_help=False)
    first.add_argument("--config")
    first.add_argument("--plugin")
    early, _ = first.parse_known_args(argv)
    config = {} if early.config is None else recipe.read(early.config)
    if (
        isinstance(config.get("plugin"), str) and early.plugin is None
    ):  # recipes travel; code runs only where somebody typed its name
        raise InputError(
            f"--config {early.config} names a plugin ({config['plugin']}), which runs code: give --plugin "
            f"{config['plugin']} to allow it"
        )
    parser = _parser(early.plugin)
    filed = _without_zoo(parser.parse_mapping(config, early.config))
    typed = _without_zoo(vars(parser.parse_args(argv)))
    return _build(filed | typed, typed)


def _parser(plugin: str | None) -> ArgumentParser:
    """The whole command line; a plugin's block is registered first, so that its options are there too."""
    if plugin is not None:
        registry.load_plugin(expanded(plugin))
    parser = ArgumentParser(description="Takes a learned image codec off its GDN layers.", removed=_REMOVED)
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, the command line wins [none]")
    for group, cls in _GROUPS.items():
        parser.add_dataclass(group.replace("_", " "), cls)
        if cls is ReplacementOptions:
            for act in registry.block_names():
                _add_block(parser, act)
    return parser


def _add_block(parser: ArgumentParser, act: str) -> None:
    fields = registry.block_options(act)
    for name in fields.keys() & _FIELDS.keys():
        raise InputError(f"activation {act!r}: --{name} is an option of the trainer: change its prefix")
    if fields:
        parser.add_fields(f"{act} (with --act {act})", fields)


def _without_zoo(given: dict[str, Any]) -> dict[str, Any]:
    """Whoever names a checkpoint wants it and not the zoo's weights, unless the same hand asks for both."""
    return {"pretrained": False} | given if given.get("init_checkpoint") else given


def _build(given: Mapping[str, Any], typed: Collection[str]) -> Options:
    """Checks and defaults. What was typed must have an effect; a file may also spell out defaults."""
    act = given.get("act", _FIELDS["act"].default)
    own = registry.block_options(act)
    for other in registry.block_names():
        for name in registry.block_options(other):
            if name in given and name not in own:
                raise InputError(f"--{name} belongs to --act {other}, not to --act {act}: drop one of the two")
    for name, (owner, uses) in _ONLY_WITH.items():
        value, chosen = (given.get(each, _FIELDS[each].default) for each in (name, owner))
        if chosen not in uses and (name in typed or value != _FIELDS[name].default):
            chosen, *use = (str(each).lower() if isinstance(each, bool) else str(each) for each in (chosen, *uses))
            raise InputError(f"--{name} does nothing with --{owner} {chosen}: use --{owner} {'/'.join(use)}")
    given = {"amp": not given.get("qat", False), **given}
    groups = {
        group: cls(**{field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given})
        for group, cls in _GROUPS.items()
    }
    return Options(**groups, block=registry.make_options(act, {name: given[name] for name in own if name in given}))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
