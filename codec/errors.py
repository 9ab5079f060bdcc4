"""The exceptions for bad input: every command turns them into lines on stderr and exit status 2."""

from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from coco224.errors import counted

PLUGINS = "codec_plugin_"
"""How the names of the modules that are users' plugins begin."""

OF_PLUGIN = "codec_of_plugin"
"""The attribute of a block that a plugin has made: the words that name it in errors."""


class InputError(Exception):
    """Its message says in one sentence what was given, what is wrong with it and what to do."""


def no_file(path: Path) -> str:
    """What a path is that is no regular file, for example a FIFO, which a command would wait for."""
    if path.is_dir():
        return "a folder, not a file"
    return "not a regular file" if path.exists() else "no such file"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch has no class for this error."""
    words = ("not enough memory", "out of memory", "bad_alloc", "could not create a memory object",
             "could not create a primitive")  # fmt: skip
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def in_plugin(frame: FrameType) -> bool:
    """Whether a frame runs code of a user's plugin."""
    return str(frame.f_globals.get("__name__")).startswith(PLUGINS)


def plugin_error(error: BaseException) -> str:
    """An error of a plugin in words."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"it ends the program (SystemExit: {error}); a plugin only registers blocks"
    reason = str(error).partition("\n")[0]  # torch's C++ frames may follow
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


class SomeFailed(InputError):
    """Raised at the end of a command: some of its files or pictures failed, and all others are done.

    Attributes:
        failures: a sentence for each that failed.
    """

    def __init__(self, failures: Sequence[str], count: int, noun: str) -> None:
        """`count` files or pictures were given, and `noun` is "file" or "picture"."""
        self.failures = failures
        first = f"the first: {failures[0]}" if len(failures) > 1 else failures[0]
        separator = ", " if len(failures) > 1 else ": "
        super().__init__(f"{len(failures)} of {counted(count, noun)} failed{separator}{first}" if count > 1 else first)
