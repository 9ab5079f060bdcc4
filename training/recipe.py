"""The YAML file of --config: one option per line. Tags, aliases and other YAML features are refused.

It may end with a list `then` of the commands that `codec-pipeline` runs after the training, each with its options; the
training program itself does not look at it.
"""

import itertools
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.resolver import Resolver

from coco224.files import expanded, open_regular
from codec.errors import InputError

THEN = "then"
Steps = list[tuple[str, dict[str, Any]]]
"""Commands with their options, in order."""

_LARGEST = 65536  # bytes; every option with its longest text takes a tenth of it
# No path or name contains these; \udc80 to \udcff represent the bytes of a file name that is not UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")


def read(path: str) -> dict[str, Any]:
    """Reads a file as option name -> text, number, boolean or None.

    The path may begin with `~` or name a recipe that the wheel installs. Numbers are decimal, as on the command line:
    010 is ten. Quoted values are text.

    Raises InputError for a file that cannot be read or is not a flat mapping, and for an option that is given twice.
    """
    return _read(path)[0]


def read_then(path: str) -> Steps:
    """The list `then` of a file: the name of each command and its options; empty if there is none."""
    return _read(path)[1]


def _read(path: str) -> tuple[dict[str, Any], Steps]:
    where = f"--config {path}"
    try:
        return _document(_bytes(path), where)
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
    with open_regular(installed if installed.is_file() and not file.exists() else file) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"--config {path} has more than {_LARGEST // 1024} KiB: give a YAML file of options")
    return content


def _document(content: bytes, where: str) -> tuple[dict[str, Any], Steps]:
    """Reads PyYAML's events, so that a value that would take long to build or to print is refused at its start."""
    stream = yaml.parse(content, yaml.SafeLoader)
    events = list(itertools.islice(stream, 3))  # the stream's start, the document's, and the mapping's
    if not isinstance(events[-1], yaml.MappingStartEvent):
        raise InputError(f"{where} is not a mapping: write one option per line, like `lr: 1e-4`")
    steps: Steps = []
    values = _options(stream, where, steps)
    if not isinstance(list(itertools.islice(stream, 2))[-1], yaml.StreamEndEvent):
        raise InputError(f"{where} holds more than one document: keep one")
    return values, steps


def _options(stream: Iterator[yaml.Event], where: str, steps: Steps | None = None) -> dict[str, Any]:
    """The options up to the end of their mapping. `steps`, if given, takes the list `then`."""
    values: dict[str, Any] = {}
    for key in stream:
        if isinstance(key, yaml.MappingEndEvent):
            break
        name = _scalar(key, f"{where}: the name of an option").value
        if name in values or (name == THEN and steps):
            raise InputError(f"{where}: {name} is given twice")
        if name == THEN and steps is not None:
            steps += _steps(stream, f"{where}: {name}")
        else:
            values[name] = _value(_scalar(next(stream), f"{where}: {name}"), f"{where}: {name}")
    return values


def _steps(stream: Iterator[yaml.Event], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The steps of a list: each the name of a command, with or without options."""
    advice = "write `then:`, and below it a line `- evaluate:` for each command with its options"
    if not isinstance(next(stream), yaml.SequenceStartEvent):
        raise InputError(f"{where} is not a list: {advice}")
    for event in stream:
        if isinstance(event, yaml.SequenceEndEvent):
            return
        if isinstance(event, yaml.ScalarEvent):
            yield _scalar(event, where).value, {}
            continue
        if not isinstance(event, yaml.MappingStartEvent):
            raise InputError(f"{where}: a step is neither a name nor a name with options: {advice}")
        name = _scalar(next(stream), f"{where}: the name of a command").value
        event = next(stream)
        if isinstance(event, yaml.MappingStartEvent):
            yield name, _options(stream, f"{where}: {name}")
        elif _value(_scalar(event, f"{where}: {name}"), f"{where}: {name}") is None:
            yield name, {}
        else:
            raise InputError(f"{where}: {name}: {advice}")
        if not isinstance(next(stream), yaml.MappingEndEvent):
            raise InputError(f"{where}: {name} has more than one command in a step: begin each with `-`")


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
