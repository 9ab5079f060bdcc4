"""Names of the replacement blocks, and their options.

A block is a class with two static methods and, where it has options, a dataclass of them:

    @register_activation("myact")
    class MyAct:
        @dataclass
        class Options:
            scale: float = 1.0                      # becomes --myact_scale

        @staticmethod
        def encoder(channels: int, options: Options) -> nn.Module: ...    # replaces a GDN of g_a

        @staticmethod
        def decoder(channels: int, options: Options) -> nn.Module: ...    # replaces an IGDN of g_s

Both modules map [B, channels, H, W] to the same shape. Without `Options`, `options` is None.

A module with `local = True` says that its receptive field is that of its convolutions, one after the other. Then large
pictures are coded in tiles. Without it a picture is coded at once, and memory grows with the picture.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from os import PathLike
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, Protocol, TypeVar, get_type_hints
from zlib import crc32

import torch
from torch import nn

from codec.blocks.guard import code_of_block, execute
from codec.blocks.trial import try_out
from codec.description.architecture import KEEP_GDN, BlockChoice
from codec.errors import OF_PLUGIN, PLUGINS, InputError, no_file, plugin_error


class Block(Protocol):
    """The class that `register_activation` decorates."""

    @staticmethod
    def encoder(channels: int, options: Any) -> nn.Module: ...

    @staticmethod
    def decoder(channels: int, options: Any) -> nn.Module: ...


A = TypeVar("A", bound=Block)


@dataclasses.dataclass(frozen=True)
class _Entry:
    block: type[Block]
    prefix: str
    fields: dict[str, dataclasses.Field[Any]]  # by public name


_MOST_BYTES = 2**22  # of a plugin
_RESERVED = ("help", "config")

_entries: dict[str, _Entry] = {}
_plugins: dict[Path, list[str]] = {}


def register_activation(name: str, prefix: str | None = None) -> Callable[[type[A]], type[A]]:
    """Makes the decorated class selectable as `--act NAME`; its Options become `--PREFIXfield`.

    The prefix is "NAME_" unless given.

    Raises InputError for a name or an option that is already taken, a missing `encoder` or `decoder`, and an option
    without a default or of another type than int, float, bool or str.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"activation name {name!r}: use lower-case letters, digits and underscores")
    if name in block_names():
        raise InputError(f"activation name {name!r} is already taken: give the block another name")

    def register(block: type[A]) -> type[A]:
        for form in ("encoder", "decoder"):
            if not callable(getattr(block, form, None)):
                raise InputError(f"activation {name!r} has no static method {form}(channels, options): add it")
        option_prefix = f"{name}_" if prefix is None else prefix
        fields = {option_prefix + field.name: field for field in _option_fields(name, block)}
        for option in fields:
            if option in _RESERVED or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", option):
                raise InputError(f"activation {name!r}: --{option} cannot be an option of a block: change its prefix")
        for other, entry in _entries.items():
            for option in fields.keys() & entry.fields.keys():
                raise InputError(f"activation {name!r}: --{option} is an option of {other!r}: change its prefix")
        _entries[name] = _Entry(block, option_prefix, fields)
        return block

    return register


def block_names() -> list[str]:
    """All values of `--act`, sorted, including KEEP_GDN."""
    return sorted([*_entries, KEEP_GDN])


def block_named(name: str) -> type[Block]:
    """The block of that name. Raises InputError for an unknown one, and for KEEP_GDN, which has no block."""
    return _entry(name).block


def block_options(name: str) -> dict[str, dataclasses.Field[Any]]:
    """Public option name -> field, whose `type` is int, float, bool or str; empty without options."""
    return {} if name == KEEP_GDN else dict(_entry(name).fields)


def make_options(name: str, values: dict[str, Any]) -> Any:
    """The block's Options from values by public name, defaults for the others; None where it has no options.

    Numbers and booleans may be given as text, and an int for a float; all other values must have the option's type.
    Raises InputError for an unknown option and for a value that the block does not accept.
    """
    fields = block_options(name)
    for option in values.keys() - fields.keys():
        known = ", ".join(f"--{each}" for each in fields) or "none"
        raise InputError(f"--{option} is not an option of --act {name}: leave it out (its options: {known})")
    if not fields:
        return None
    given = {fields[option].name: _coerce(option, fields[option], value) for option, value in values.items()}
    with code_of_block(f"--act {name}: its Options fail"):
        try:
            return _entry(name).block.Options(**given)  # type: ignore[attr-defined]
        except ValueError as error:  # what a user's own __post_init__ is likely to raise
            raise InputError(f"--act {name}: {error}") from error


def options_dict(name: str, options: Any) -> dict[str, Any]:
    """The inverse of `make_options`: every option's value by public name."""
    return {option: getattr(options, field.name) for option, field in block_options(name).items()}


def load_plugin(path: str | PathLike[str]) -> list[str]:
    """Runs a user's Python file that registers blocks, and returns their names. A file runs only once.

    Raises InputError for a missing file, a file that fails to import or registers nothing, and a name that is
    already taken. Then nothing of the file stays registered.
    """
    file = Path(path).resolve()
    if file in _plugins:
        return list(_plugins[file])
    if not file.is_file():
        raise InputError(f"--plugin {path}: {no_file(file)}: give the path of a Python file that registers a block")
    if file.stat().st_size > _MOST_BYTES:
        raise InputError(f"--plugin {path} has more than {_MOST_BYTES:,} bytes: give a Python file")
    before = set(_entries)
    loader = SourceFileLoader(f"{PLUGINS}{file.stem}_{crc32(bytes(file)):08x}", str(file))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses and torch.compile look a class's module up by name
    error = execute(loader, module)
    if error is None and set(_entries) == before:
        error = InputError("it registers no block: decorate a class with @register_activation(NAME)")
    if error is not None:
        for name in set(_entries) - before:
            del _entries[name]
        del sys.modules[loader.name]
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--plugin {path}{where}: {plugin_error(error)}") from error
    _plugins[file] = sorted(set(_entries) - before)
    return list(_plugins[file])


def new_block(choice: BlockChoice, form: Literal["encoder", "decoder"], channels: int) -> nn.Module:
    """A new block, tested on a small map, so that the author of a plugin sees a fault at once.

    A user's block is tested in training too, on a map of another size.

    Raises:
        InputError: the block or an option is unknown, the constructor fails or gives no module, the output has
            another shape or type or is not finite, or a checkpoint cannot hold the weights.
    """
    block = _constructed(choice, form, channels)
    where = _place(choice, form, channels)
    try_out(where, block, channels, _is_built_in(choice.name))
    return block


def block_shapes(
    choice: BlockChoice, form: Literal["encoder", "decoder"], channels: int
) -> dict[str, tuple[int, ...]] | None:
    """The shapes in a block's state dict, without memory for it; None if its constructor reads its weights.

    Raises:
        InputError: the block or an option is unknown, or the constructor fails or gives no module.
    """
    try:
        with torch.device("meta"):
            block = _constructed(choice, form, channels)
    except InputError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return None
        raise
    with code_of_block(f"{_place(choice, form, channels)} fails"):
        return {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}


def _constructed(choice: BlockChoice, form: Literal["encoder", "decoder"], channels: int) -> nn.Module:
    options = make_options(choice.name, choice.options)
    with code_of_block(f"{_place(choice, form, channels)} fails"):
        block = getattr(block_named(choice.name), form)(channels, options)
    if not isinstance(block, nn.Module):
        raise InputError(f"{_place(choice, form, channels)} gives {type(block).__name__}, not a torch.nn.Module")
    if not _is_built_in(choice.name):
        with code_of_block(f"{_place(choice, form, channels)} takes no attribute"):
            setattr(block, OF_PLUGIN, f"--act {choice.name}: {type(block).__name__}")
    return block


def _is_built_in(name: str) -> bool:
    return block_named(name).__module__.startswith("codec.")


def _place(choice: BlockChoice, form: str, channels: int) -> str:
    return f"--act {choice.name}: {form}({channels} channels)"


def _entry(name: str) -> _Entry:
    if name not in _entries:
        known = ", ".join(block_names())
        raise InputError(f"--act {name}: no such block; known are {known}; --plugin FILE.py adds your own")
    return _entries[name]


def _option_fields(name: str, block: type) -> list[dataclasses.Field[Any]]:
    options = getattr(block, "Options", None)
    if options is None:
        return []
    if not dataclasses.is_dataclass(options):
        raise InputError(f"activation {name!r}: its Options is no dataclass: decorate it with @dataclass")
    types = get_type_hints(options)
    fields = [field for field in dataclasses.fields(options) if field.init]
    for field in fields:
        for key, value in field.metadata.items():
            if key != "help" or not isinstance(value, str):
                raise InputError(
                    f"activation {name!r}: option {field.name!r}: metadata {key!r}: {value!r}: give 'help' only, a text"
                )
        field.type = types[field.name]  # text where the file has `from __future__ import annotations`
        if field.type not in (int, float, bool, str) or field.default is dataclasses.MISSING:
            raise InputError(
                f"activation {name!r}: option {field.name!r} must be int, float, bool or str, with a default"
            )
        if type(field.default) is not field.type and not (field.type is float and type(field.default) is int):
            raise InputError(
                f"activation {name!r}: option {field.name!r}: {field.default!r} is not {field.type.__name__}"
            )
        if isinstance(field.default, float) and not math.isfinite(field.default):
            raise InputError(f"activation {name!r}: option {field.name!r}: {field.default} is no finite default")
    return fields


def _coerce(option: str, field: dataclasses.Field[Any], value: Any) -> Any:
    text = str(value).strip()
    try:
        if field.type is str and isinstance(value, str):
            return value
        if field.type is bool:
            return {"true": True, "false": False}[text.lower()]
        if field.type is int and not isinstance(value, bool | float):
            return int(text)
        if field.type is float and not isinstance(value, bool) and math.isfinite(float(text)):
            return float(text)
    except (KeyError, ValueError):
        pass
    wanted = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
    raise InputError(f"--{option} {value}: give {wanted[field.type]}")  # type: ignore[index]
