"""The YAML file of --config: one option per line. Lists, tags, aliases and other YAML features are refused."""

import itertools
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.resolver import Resolver

from coco224.files import expanded
from codec.errors import InputError

_LARGEST = 65536  # bytes; every option with its longest text takes a tenth of it
# No path or name contains these; \udc80 to \udcff represent the bytes of a file name that is not UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")


def read(path: str) -> dict[str, Any]:
    """Reads a file as option name -> text, number, boolean or None.

    The path may begin with `~` or name a recipe that the wheel installs. Numbers are decimal, as on the command line:
    010 is ten. Quoted values are text.

    Raises InputError for a file that cannot be read or is not a flat mapping, and for an option that is given twice.
    """
    where = f"--config {path}"
    try:
        return _mapping(_bytes(path), where)
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise InputError(f"{where} is not YAML: {error.problem}{line}") from error
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # PyYAML raises the latter for escapes like "\Uffffffff"
        raise InputError(f"{where} is not YAML: {error}") from error


def _bytes(path: str) -> bytes:
    file = Path(expanded(path))
    installed = Path(sysconfig.get_path("data"), "share", "npu-image-codec", path)  # the wheel installs the recipes
    with (installed if installed.is_file() and not file.exists() else file).open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"--config {path} has more than {_LARGEST // 1024} KiB: give a YAML file of options")
    return content


def _mapping(content: bytes, where: str) -> dict[str, Any]:
    """Reads PyYAML's events, so that a value that would take long to build or to print is refused at its start."""
    stream = yaml.parse(content, yaml.SafeLoader)
    events = list(itertools.islice(stream, 3))  # the stream's start, the document's, and the mapping's
    if not isinstance(events[-1], yaml.MappingStartEvent):
        raise InputError(f"{where} is not a mapping: write one option per line, like `lr: 1e-4`")
    values: dict[str, Any] = {}
    for key in stream:
        if isinstance(key, yaml.MappingEndEvent):
            break
        name = _scalar(key, f"{where}: the name of an option").value
        if name in values:
            raise InputError(f"{where}: {name} is given twice")
        values[name] = _value(_scalar(next(stream), f"{where}: {name}"), f"{where}: {name}")
    if not isinstance(list(itertools.islice(stream, 2))[-1], yaml.StreamEndEvent):
        raise InputError(f"{where} holds more than one document: keep one")
    return values


def _scalar(event: yaml.Event, where: str) -> yaml.ScalarEvent:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise InputError(f"{where}: aliases and anchors (* and &) are not read; write the value out")
    if tag := getattr(event, "tag", None):
        raise InputError(f"{where}: tags like {tag} are not read; write the value without the tag")
    if not isinstance(event, yaml.ScalarEvent):
        kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
        raise InputError(f"{where}: a {kind} is not one value")
    if _CONTROL.search(event.value):
        raise InputError(f"{where}: holds a control character or a line break")
    return event


def _value(scalar: yaml.ScalarEvent, where: str) -> str | int | float | bool | None:
    text: str = scalar.value
    if not scalar.implicit[0]:  # quoted
        return text
    kind = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)).rpartition(":")[2]
    try:
        return _READERS[kind](text)
    except (KeyError, ValueError):  # 0x10, 1:30, 2024-12-05
        raise InputError(f"{where}: {text} is neither a decimal number nor text; if text is meant, quote it") from None


_RESOLVER = Resolver()
_READERS: dict[str, Callable[[str], str | int | float | bool | None]] = {
    "null": lambda text: None,
    "bool": lambda text: yaml.SafeLoader.bool_values[text.lower()],
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}
