"""Trains, then runs the commands in a recipe's list `then`, in order: from a YAML file to an evaluated, exported codec.

    codec-pipeline RECIPE.yaml --coco_dir coco224

The same command continues after an interruption. It skips a step whose command has not changed since it was done, whose
inputs are older than that, and whose outputs exist. The exit status is that of the first step that fails, or 0.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from coco224.errors import one_line, printable
from coco224.files import expanded, read_json, write_whole
from codec.cli import ArgumentParser, as_typed, check_value, is_required, run
from codec.errors import InputError
from codec.sample import to_use

OUTPUTS = ("out", "json", "per_image", "plot", "report")
"""Options that name a file or folder that a command writes."""

INPUTS = ("calib_dir", "compilers", "images", "onnx", "plugin")
"""Options that name a file or folder that a command reads; --coco_dir may be a name on the Hub."""

FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a scheduler sends to this process alone: the training saves its state on them."""


@dataclass(frozen=True)
class Step:
    """A command with what it reads and writes.

    Attributes:
        options: those that it resolves from a file.
        done: the file that says that it was done.
        uploads_to: the repository on the Hub that it uploads to; empty if it uploads nothing.
    """

    name: str
    command: list[str]
    options: dict[str, str]
    inputs: list[Path]
    outputs: list[Path]
    done: Path
    uploads_to: str = ""

    def is_done(self) -> bool:
        """Whether it need not run: see the module's docstring. Of a folder, its own date counts."""
        if not self.done.is_file() or self.done.read_bytes() != self.record().encode():
            return False
        since = self.done.stat().st_mtime_ns
        return all(path.exists() for path in self.outputs) and all(
            path.stat().st_mtime_ns <= since for path in self.inputs if path.exists()
        )

    def keep(self, **more: bool) -> None:
        """Writes its record."""
        write_whole(self.done, self.record(**more))

    def in_short(self) -> str:
        """Its name, and where it uploads to."""
        return f"{self.name} (uploads to {self.uploads_to})" if self.uploads_to else self.name

    def record(self, **more: bool) -> str:
        """What it was, for the next call: with `begun=True` while it runs."""
        return json.dumps({"command": self.command, "options": self.options, **more}, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="codec-pipeline",
        usage="%(prog)s RECIPE.yaml [--launcher COMMAND] [--compilers DIR] [training options]",
        description="Trains with a recipe, then runs the commands of its list `then`.",
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="training options, and the list `then`")
    launcher = "what starts the training, like 'accelerate launch' [python]"
    parser.add_argument("--launcher", default=shlex.quote(sys.executable), metavar="COMMAND", help=launcher)
    compilers = "allows `compilers: DIR` in the list, whose programs run [none]"
    parser.add_argument("--compilers", metavar="DIR", help=compilers)
    given, training = parser.parse_known_args(argv)
    found = steps(given.recipe, launcher_words(given.launcher), training, given.compilers)
    check_files(found, given.recipe)
    print(one_line(f"steps: {', '.join(step.in_short() for step in found)}"), flush=True)
    for step in found:
        if step.is_done():
            print(f"{step.name}: done before", flush=True)
            continue
        print(printable(f"{step.name}: {shlex.join(step.command)}"), flush=True)
        step.keep(begun=True)
        status = execute(step.command)
        if status:
            print(f"{step.name} ended with status {status}; the same command continues there", file=sys.stderr)
            return status
        step.keep()
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def launcher_words(launcher: str) -> list[str]:
    """The words of --launcher.

    Raises:
        InputError: there are none, or a quotation does not end.
    """
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise InputError(f"--launcher {launcher}: {error}; write it as on a command line") from None
    if not words:
        raise InputError("--launcher is empty: give a command like 'accelerate launch', or leave it out")
    return words


def commands() -> dict[str, tuple[str, str, type]]:
    """By the name of a step: its module, its option for the checkpoint, and the dataclass of its options."""
    from codec.evaluate import EvaluateOptions
    from codec.push import PushOptions
    from export.__main__ import ExportOptions
    from export.npu import NpuOptions
    from export.report import ReportOptions

    return {
        "evaluate": ("codec.evaluate", "checkpoint", EvaluateOptions),
        "export": ("export", "ckpt", ExportOptions),
        "report": ("export.report", "ckpt", ReportOptions),
        "npu": ("export.npu", "ckpt", NpuOptions),
        "push": ("codec.push", "checkpoint", PushOptions),
    }


def check_options(parser: ArgumentParser, values: Mapping[str, Any], checkpoint: str, where: str) -> None:
    """Checks a step's options as far as the files of the training do not matter.

    Raises:
        InputError: a value is not allowed, or a required option is missing, apart from that of the checkpoint.
    """
    for name, field in parser.fields.items():
        if name in values:
            try:
                check_value(field, values[name])
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
        elif is_required(field) and name != checkpoint:
            raise InputError(f"{where}: {name} is required; docs/options.md has all options")


def check_together(
    cls: type, parsed: Mapping[str, Any], given: str, checkpoint: str, before: Sequence["Step"], where: str
) -> None:
    """Checks a step's options as its command does, and that files exist that no earlier step writes.

    Args:
        given: the step's checkpoint, and `checkpoint` the name of the option.
        before: the steps before it.

    Raises:
        InputError: the options do not go together, or a file is not there.
    """
    written = [path for step in before for path in step.outputs]
    read = {name: Path(expanded(parsed[name])) for name in INPUTS if parsed.get(name)}
    for name, path in (read | {checkpoint: to_use(given)}).items():
        if not path.exists() and not any(path in (each, each.parent) for each in written):
            raise InputError(f"{where}: {name} {path}: no such file or folder; correct the recipe")
    own = {name: value for name, value in parsed.items() if name != "onnx"}  # a folder that a step before may fill
    if checkpoint in {field.name for field in fields(cls)}:
        own[checkpoint] = given
    try:
        cls(**own)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def check_allowed(values: Mapping[str, Any], allowed: Mapping[str, str | None], where: str) -> None:
    """Recipes are shared, and these options run code: each works only with the value on the command line.

    Raises:
        InputError: an option has another value.
    """
    for name, value in allowed.items():
        if values.get(name) not in (None, value):
            raise InputError(
                f"{where} names {name}: {values[name]}, which runs code: give --{name} {values[name]} to allow it"
            )


def steps(recipe: str, launcher: Sequence[str], training: Sequence[str], compilers: str | None = None) -> list[Step]:
    """The training and the steps of the list, whose options are checked here, before anything runs.

    Args:
        training: the training's options on the command line.
        compilers: the folder of compilers on the command line.

    Raises:
        InputError: the recipe is no recipe, a step has no such option, or it would run code that the command line does
            not name.
    """
    from training.options import parse
    from training.recipe import read_then
    from training.resume import decisive_files

    words = ["--config", recipe, *training]
    parsed_options = parse(words)
    options, read = parsed_options.flat(), list(decisive_files(parsed_options).values())
    folder = Path(options["save_dir"])
    last, kept = folder / "last.safetensors", folder / "pipeline"
    written = {name: str(value) for name, value in options.items()}
    command = [*launcher, "-m", "train_accel", *words]
    uploads_to = options["hub_model_id"] if options["push_to_hub"] else ""
    found = [Step("train", command, written, read, [last], kept / "0-train.json", uploads_to)]
    known, allowed = commands(), {"plugin": options["plugin"], "compilers": compilers}
    for number, (name, given) in enumerate(read_then(recipe), 1):
        where = f"{recipe}: then: {name}"
        if name not in known:
            raise InputError(f"{where}: no such command; use one of {', '.join(known)}")
        module, checkpoint, cls = known[name]
        parser = ArgumentParser(add_help=False)
        parser.add_dataclass(name, cls)
        parsed = parser.parse_mapping({key: value for key, value in given.items() if key != checkpoint}, where)
        check_options(parser, parsed, checkpoint, where)
        check_allowed(parsed, allowed, where)
        values = {checkpoint: str(last)} | {key: value for key, value in given.items() if value is not None}
        command = [sys.executable, "-m", module, *(f"--{key}={as_typed(value)}" for key, value in values.items())]
        check_together(cls, parsed, values[checkpoint], checkpoint, found, where)
        paths = [(key in OUTPUTS, Path(expanded(value))) for key, value in values.items() if isinstance(value, str)]
        inputs, outputs = ([path for is_output, path in paths if is_output == side] for side in (False, True))
        uploads_to = parsed.get("hub_model_id", "")
        found.append(Step(name, command, {}, inputs, outputs, kept / f"{number}-{name}.json", uploads_to))
    return found


def check_files(found: Sequence[Step], recipe: str) -> None:
    """A recipe of somebody else must not replace our files; what a folder may lose is for its command to check.

    Raises:
        InputError: a step after the training writes a file that is there, and no earlier call of the recipe wrote it;
            or two steps write one file, or the folder of the records is none.
    """
    records, outputs = found[0].done.parent, [path for step in found for path in step.outputs]
    if os.path.lexists(records) and not records.is_dir():
        raise InputError(f"{records} is no folder, and this program keeps its records there: move it")
    for path in outputs:
        if outputs.count(path) > 1:
            raise InputError(f"{recipe}: then: two steps write {path}: name another file in one of them")
    ours = {word.partition("=")[2] for path in records.glob("*.json") for word in words_of(path)}
    for step in found[1:]:
        for path in step.outputs:
            if path.is_file() and str(path) not in ours:
                raise InputError(
                    f"{recipe}: then: {step.name} writes {path}, which is there already: move it, or name another file"
                )


def words_of(record: Path) -> list[str]:
    """The command in a step's record; empty if the file is damaged."""
    try:
        return [str(word) for word in read_json(record)["command"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def execute(command: Sequence[str]) -> int:
    """Runs a command and returns its status; a signal that this process gets goes to the command."""
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, _: object) -> None:
        if children:
            children[0].send_signal(number)
        else:
            early.append(number)

    # A terminal sends Ctrl-C to both: the command decides what to do, and this process waits for it.
    kept = {number: signal.signal(number, forward) for number in FORWARDED}
    kept[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        children.append(subprocess.Popen(command))
        for number in early:
            children[0].send_signal(number)
        status = children[0].wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    cli()
