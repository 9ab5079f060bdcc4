"""The exceptions for bad input: every command turns them into lines on stderr and exit status 2."""

from collections.abc import Sequence

from coco224.errors import counted


class InputError(Exception):
    """Its message says in one sentence what was given, what is wrong with it and what to do."""


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
