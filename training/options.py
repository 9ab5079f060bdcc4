"""The options of the training program, from the command line and the YAML file of --config.

Every component owns the dataclass of its options; this file collects them and checks combinations across components.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coco224.files import expanded
from codec.blocks import registry
from codec.cli import ArgumentParser, as_typed
from codec.description.architecture import STRIDE
from codec.description.file import TRAINING
from codec.errors import InputError
from training import recipe
from training.data import DataOptions
from training.hardware import LaunchOptions
from training.initial import ModelOptions
from training.objective import RateDistortion, min_input_size
from training.optim import EntropyModelOptions, ScheduleOptions
from training.output import OutputOptions
from training.phases import QatOptions
from training.precision import NumericsOptions
from training.reporting import ReportingOptions
from training.scope import ReplacementOptions


@dataclass(frozen=True)
class Options:
    """The resolved options of a run.

    Attributes:
        block: the options of the chosen block; None if it has none.
        typed: names of the options on the command line; the others are a file's or defaults.
    """

    replacement: ReplacementOptions
    model: ModelOptions
    data: DataOptions
    loss: RateDistortion
    schedule: ScheduleOptions
    numerics: NumericsOptions
    entropy_model: EntropyModelOptions
    qat: QatOptions
    output: OutputOptions
    reporting: ReportingOptions
    launch: LaunchOptions
    block: Any
    typed: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

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
        self._check_rates()
        for name in ("save_dir", "recon_dir"):
            folder = getattr(self.output, name)
            if os.path.realpath(folder) == os.path.realpath(self.data.coco_dir):
                raise InputError(f"--{name} {folder} is --coco_dir, which holds the dataset: name another folder")
        if self.schedule.sched == "plateau" and not self.output.eval_every:
            raise InputError("--sched plateau with --eval_every 0 has no validation loss: use --eval_every 1 or more")

    def _check_rates(self) -> None:
        """Refuses rates without lambdas, and the reverse; the rates of a checkpoint are not known yet."""
        rates, ranged = self.model.rates or 1, isinstance(self.loss.weight, str)
        if rates > 1 and not self.loss.terms.rate:
            raise InputError(
                f"--rates {rates} with --loss_type {self.loss.loss_type}, which has no rate: use --loss_type rd or mse"
            )
        name = self.loss.weight_name
        if rates > 1 and not ranged:
            raise InputError(
                f"--rates {rates} with --{name} {self.loss.weight}: give the range of lambdas, --{name} LOW:HIGH"
            )
        if ranged and rates == 1 and (self.model.rates or not self.model.init_checkpoint):
            raise InputError(
                f"--{name} {self.loss.weight} is a range for codecs of several rates: give --rates 8, or one lambda"
            )

    def flat(self) -> dict[str, Any]:
        """All options by public name, including those of the chosen block, as --config reads them.

        Those with the hint `optional` are left out if they are not given.
        """
        values = {
            name: value
            for group in _GROUPS
            for name, value in vars(getattr(self, group)).items()
            if value is not None or not _FIELDS[name].metadata.get("optional")
        }
        return values | registry.options_dict(self.replacement.act, self.block)

    def command(self) -> str:
        """The run as one command that others can use: all options that differ from their default, but no local ones.

        Paths are reduced to the name of the file, and a dataset that is not on the Hub is left out.
        """
        fields = _FIELDS | registry.block_options(self.replacement.act)
        values = self.flat()
        if not self.data.on_the_hub():
            values["coco_dir"] = "/path/to/coco224" if self.data.use_prepared else "/path/to/coco2017"
        for name in ("init_checkpoint", "plugin"):
            values[name] = values[name] and Path(values[name]).name
        given = {name: value for name, value in values.items() if value != fields[name].default}
        words = [
            f"--{name} {shlex.quote(as_typed(value))}"
            for name, value in given.items()
            if not fields[name].metadata.get("local")
        ]
        return " ".join([TRAINING, *words])

    def deciding(self) -> dict[str, Any]:
        """The options that affect the trained weights, by public name: a resumed run must have the same values."""
        names = [name for name, field in _FIELDS.items() if field.metadata.get("decides")]
        if self.schedule.sched == "plateau":
            names.append("eval_every")
        flat = self.flat()
        return {name: flat.get(name) for name in (*names, *registry.block_options(self.replacement.act))}


_GROUPS: dict[str, Any] = {
    field.name: field.type for field in dataclasses.fields(Options) if dataclasses.is_dataclass(field.type)
}
_FIELDS = {field.name: field for cls in _GROUPS.values() for field in dataclasses.fields(cls)}
_REMOVED = {"amp_warmup_steps": "was removed: bf16 + local FP32 + LR warm-up + gradient clipping do its job"}


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line and of its --config file; the command line has priority.

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
    ):  # recipes are shared; code runs only if the user typed its name
        raise InputError(
            f"--config {early.config} names a plugin ({config['plugin']}), which runs code: give --plugin "
            f"{config['plugin']} to allow it"
        )
    parser = _parser(early.plugin)
    filed = _without_zoo(parser.parse_mapping(config, early.config))
    typed = _without_zoo(vars(parser.parse_args(argv)))
    return _build(filed | typed, typed)


def _parser(plugin: str | None) -> ArgumentParser:
    """The parser of the complete command line. A plugin's block is registered first, so its options are included."""
    if plugin is not None:
        registry.load_plugin(expanded(plugin))
    parser = ArgumentParser(
        description="Fine-tunes a learned image codec whose GDN layers are replaced by blocks for NPUs.",
        removed=_REMOVED,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; the command line has priority [none]")
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
    """With --init_checkpoint, --pretrained is false by default; naming both in the same place remains an error."""
    return {"pretrained": False} | given if given.get("init_checkpoint") else given


def _build(given: Mapping[str, Any], typed: Collection[str]) -> Options:
    """Adds defaults and checks. Typed options must have an effect; a file may also contain defaults."""
    act = given.get("act", _FIELDS["act"].default)
    own = registry.block_options(act)
    for other in registry.block_names():
        for name in registry.block_options(other):
            if name in given and name not in own:
                raise InputError(f"--{name} belongs to --act {other}, not to --act {act}: drop one of the two")
    for name, field in _FIELDS.items():
        owner, uses = field.metadata.get("only_with", ("", ()))
        if not owner:
            continue
        value, chosen = (given.get(each, _FIELDS[each].default) for each in (name, owner))
        if chosen not in uses and (name in typed or value != _FIELDS[name].default):
            chosen, *use = (str(each).lower() if isinstance(each, bool) else str(each) for each in (chosen, *uses))
            raise InputError(f"--{name} does nothing with --{owner} {chosen}: use --{owner} {'/'.join(use)}")
    given = {"amp": not given.get("qat", False), **given}
    groups = {
        group: cls(**{field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given})
        for group, cls in _GROUPS.items()
    }
    block = registry.make_options(act, {name: given[name] for name in own if name in given})
    return Options(**groups, block=block, typed=frozenset(typed))
