"""Converts untrusted JSON to dataclasses: nesting is limited, and every value is checked against its field's type."""

import json
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Converts a JSON value to `kind`: Any, a scalar, Literal, enum, union, dict[str, X], or a dataclass of these.

    Args:
        where: name of the value in errors.

    Raises:
        ValueError: a type is wrong, or an object has an unknown key or lacks one.
    """
    result: T = _convert(kind, value, where)
    return result


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, members = get_origin(kind), get_args(kind)
    if origin is dict:
        return {name: _convert(members[1], item, f"{where}.{name}") for name, item in as_object(value, where).items()}
    if origin in (UnionType, Union):
        if value is None and NoneType in members:
            return None
        scalars = [member for member in members if member is type(value)]
        return _convert(scalars[0] if scalars else members[0], value, where)
    choices = members if origin is Literal else list(kind) if issubclass(kind, Enum) else None
    if choices is not None:
        if isinstance(value, str) and value in choices:
            return value if origin is Literal else kind(value)
        raise ValueError(f"{where} is {_short(value)}, not one of {', '.join(choices)}")
    if type(value) is kind:
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    raise ValueError(f"{where} is {_short(value)}, not {_WORDS[kind]}")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    given, types = as_object(value, where), get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    for name in sorted(given.keys() - known):
        raise ValueError(f"{where} has an unknown entry {_short(name)}")
    for field in fields(kind):
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} has no {field.name}")
    return kind(**{name: _convert(types[name], item, f"{where}.{name}") for name, item in given.items()})


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Returns a JSON object unchanged; raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_short(value)}, not an object")
    return value


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
