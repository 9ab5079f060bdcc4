"""Shared by all commands: exit status, one-line errors, and options declared as dataclass fields.

Two libraries were tried instead of `ArgumentParser`, with the training program's options and all tests of options.
jsonargparse 4.53.0 makes this file 6 lines longer: booleans, suggestions, help lines and one-line errors remain our own
code, and it forbids `parse_known_args`. It accepts a YAML key given twice, reads 010 as 8 and 1:30 as 90, and --config
overrides options typed before it. tyro 1.0.17 makes this file 19 lines longer, and 12 of 120 tests still fail: it
prints --help and errors in boxes with wrapped lines (the hook against that is in a private module), and it reads no
YAML. Times now, with jsonargparse, with tyro: the --help of `python -m codec.push` 72, 123 and 183 ms; parsing the
options of a run 1, 11 and 249 ms.
"""

import argparse
import dataclasses
import difflib
import functools
import math
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from coco224.command import SignalCame, known_cause
from coco224.command import run as run_command
from coco224.errors import DataError
from coco224.files import check_file, expanded
from codec.errors import OF_PLUGIN, InputError, in_plugin, plugin_error

Rule = tuple[Callable[[Any], bool], str]
"""A condition that a value must satisfy, and the words for an error if it does not."""

PATHS = ("FILE", "DIR", "PATH")
"""The `metavar` of options that are paths."""

POSITIVE: Rule = (lambda value: 0 < value < math.inf, "must be more than 0")
NOT_NEGATIVE: Rule = (lambda value: 0 <= value < math.inf, "must be 0 or more")
NOT_EMPTY: Rule = (bool, "must not be empty")


def at_least(low: int) -> Rule:
    return (lambda value: value >= low), f"must be at least {low}"


def between(low: int, high: int) -> Rule:
    return (lambda value: low <= value <= high), f"must be {low} to {high}"


class HelpShown(SystemExit):
    """Ends a program after its --help."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exits as `coco224.command.run` does; an InputError is bad input too."""
    run_command(functools.partial(_status, main), (InputError, DataError))


def _status(main: Callable[[], int | None]) -> int | None:
    """What main returns, which never ends the program itself.

    Raises:
        InputError: other code ended the program, or a plugin's code failed.
    """
    try:
        return main()
    except HelpShown:
        return 0
    except (InputError, DataError, SignalCame, KeyboardInterrupt):
        raise
    except BaseException as error:
        known = isinstance(error, Exception) and known_cause(error)
        if not known and (place := _place_in_plugin(error)):
            raise InputError(f"{place} fails: {plugin_error(error)}: repair it") from error
        if isinstance(error, SystemExit):
            raise InputError(
                f"code of a plugin or library ended the program early (SystemExit: {error}): repair it"
            ) from error
        raise


def _place_in_plugin(error: BaseException) -> str:
    """The plugin, the line and the function from which an error came; empty if it came from other code.

    For a block of a plugin that has no code of the plugin, like a layer of torch, it is the block's name.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [(frame.f_code, line) for frame, line in frames if in_plugin(frame)]
    if not lines:
        blocks = [getattr(frame.f_locals.get("self"), OF_PLUGIN, "") for frame, _ in frames]
        return next(filter(None, blocks), "")
    code, line = lines[-1]
    return f"--plugin {code.co_filename}, line {line}: {code.co_qualname}"


def boolean(text: str) -> bool:
    """`true` or `false` in any case, for argparse."""
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def option(default: Any, help: str, **hints: Any) -> Any:
    """A dataclass field that is an option of a command.

    Hints: `rule` (a Rule), `parse` (converts text to the value), `metavar`, `shown` (the default as --help shows it),
    `choices` (the allowed names, where a Literal cannot list them), `values` (a function that lists them for --help
    if they are known only at run time; the code that uses the option refuses others). Only for training options:
    `decides` (the value affects the trained weights, so a resumed run must have the same), `only_with` (another option
    and the values with which this one has an effect), `local` (the value concerns only this machine, and is left out
    of the command that others can repeat), `optional` (left out of records if it is not given).
    """
    return dataclasses.field(default=default, metadata={"help": help, **hints})


@dataclasses.dataclass(frozen=True)
class OptionGroup:
    """Base of the dataclasses whose fields are options; raises InputError for a value that its field does not allow."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises InputError for a value that the field does not allow."""
    holds, words = field.metadata.get("rule", (None, ""))
    if holds and value is not None and not holds(value):
        raise InputError(f"--{field.name} {value}: {words}")
    if value == "" != field.default and field.metadata.get("metavar") in PATHS:
        raise InputError(f"--{field.name} is empty: give a path, or leave it out (is a variable not set?)")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"--{field.name} {value}: does not fit into 64 bits")
    choices = _choices(field)
    if choices and value is not None and value not in choices:
        raise InputError(f"--{field.name} {value}: use one of {', '.join(choices)}")


def as_typed(value: Any) -> str:
    """A value as on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a command does not run without this option."""
    return field.metadata.get("shown") == "required"


def _kind(field: dataclasses.Field[Any]) -> Any:
    """A field's type, without `| None`."""
    if typing.get_origin(field.type) in (types.UnionType, typing.Union):
        return next(member for member in typing.get_args(field.type) if member is not types.NoneType)
    return field.type


def _choices(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The values of a field's Literal or of its hint `choices`; empty if neither lists them."""
    if typing.get_origin(_kind(field)) is typing.Literal:
        return typing.get_args(_kind(field))
    return tuple(field.metadata.get("choices", ()))


BEGINS: dict[str, tuple[bytes, ...]] = {
    "json": (b"{", b"["),
    "per_image": (b"checkpoint,",),
    "report": (b"<!",),
    ".png": (b"\x89PNG",),
    ".svg": (b"<?xml", b"<svg"),
    ".pdf": (b"%PDF",),
    ".onnx": (b"\x08",),
    ".tables": (b"NICT",),
}
"""How the outputs begin, by option or suffix."""
_OF_A_RUN = ("run.json", "summary.json")


def check_output(option: str, path: str, read: Iterable[Path] = ()) -> None:
    """Checks, before the work, an output file whose folder must exist.

    Args:
        read: the files that the command reads.

    Raises:
        InputError: it cannot be written, the command reads it, or it is there and no file of this kind.
    """
    file = Path(path)
    if not file.resolve().parent.is_dir():
        raise InputError(f"--{option} {path}: its folder does not exist; make it first")
    if file.name in _OF_A_RUN and file.with_name(_OF_A_RUN[0]).exists():
        raise InputError(f"--{option} {path}: this file is a training's; name another file")
    try:
        check_file(f"--{option}", file, read, BEGINS.get(option) or BEGINS.get(file.suffix, ()))
    except DataError as error:
        raise InputError(str(error)) from None


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose options are dataclass fields, read from a command line or from a mapping.

    Errors are one line (InputError), options cannot be abbreviated, and --help has one line for each. The result has
    only the given options: defaults come from the dataclass.
    """

    def __init__(self, *, removed: Mapping[str, str] | None = None, **settings: Any) -> None:
        """`removed`: names of former options, and the error message for a command that still uses one."""
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=60, width=1000)
        settings = {"usage": "%(prog)s [options]"} | settings
        super().__init__(formatter_class=formatter, allow_abbrev=False, **settings)
        self.register("type", Path, lambda text: Path(expanded(text)))
        self.fields: dict[str, dataclasses.Field[Any]] = {}
        self.removed = removed or {}

    def add_fields(self, title: str, fields: Mapping[str, dataclasses.Field[Any]]) -> None:
        """Adds a group with an option per field: int, float, bool, str, Literal, or one of these | None."""
        group = self.add_argument_group(title)
        self.fields.update(fields)
        for name, field in fields.items():
            kind, choices = _kind(field), _choices(field)
            values = field.metadata["values"]() if "values" in field.metadata else choices
            settings: dict[str, Any] = {"type": field.metadata.get("parse", kind)}
            if choices:
                settings = {"choices": choices}
            elif kind is bool:
                settings = {"type": boolean, "nargs": "?", "const": True}
            metavar = field.metadata.get("metavar", "NAME" if values else kind.__name__.upper())
            if metavar in PATHS:
                settings = {"type": expanded}
            line = _help(field, values)
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=metavar, help=line, **settings)

    def add_dataclass(self, title: str, cls: type) -> None:
        self.add_fields(title, {field.name: field for field in dataclasses.fields(cls)})

    def parse_mapping(self, values: Mapping[Any, Any], source: str) -> dict[str, Any]:
        """Typed values by option name of a YAML or JSON mapping, with the same rules as a command line.

        None is allowed for an option whose default is None. Each error begins with `source`.
        """
        words = []
        for name, value in values.items():
            if name not in self.fields:
                raise InputError(f"{source}: {self._unknown(str(name), self.fields)}")
            field = self.fields[name]
            if value is None and field.default is None:
                continue
            if not isinstance(value, str | int | float):
                raise InputError(f"{source}: {name}: {value!r} is not one value")
            if field.type in (str, str | None) and not isinstance(value, str):
                raise InputError(f"{source}: {name}: {value!r} is not text; if text is meant, quote it")
            words.append(f"--{name}={as_typed(value)}")
        try:
            given: dict[str, Any] = vars(self.parse_args(words))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        return given

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        namespace, unknown = self.parse_known_args(None if args is None else list(args), namespace)
        for word in unknown:
            if word.startswith("-"):
                raise InputError(self._unknown(word.partition("=")[0], self._option_string_actions))
        if unknown:
            raise InputError(f"unexpected argument {unknown[0]!r}; --help lists the options")
        return namespace

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Called after --help alone, since `error` raises."""
        raise HelpShown(status)

    def _unknown(self, name: str, known: Iterable[str]) -> str:
        if name.lstrip("-") in self.removed:
            return f"{name} {self.removed[name.lstrip('-')]}"
        matches = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {matches[0]}?" if matches else "--help lists the options"
        return f"unknown option {name}; {advice}"


def _help(field: dataclasses.Field[Any], values: Sequence[str]) -> str:
    """The help line: meaning, {allowed values}, [default]."""
    default = str(field.default).lower() if isinstance(field.default, bool | None) else field.default
    choices = f"{{{','.join(values)}}}" if values else ""
    words = [field.metadata.get("help"), choices, f"[{field.metadata.get('shown', default)}]"]
    return " ".join(word for word in words if word).replace("%", "%%")
