"""The one exception that means "bad data", which every command turns into one line, and how such lines are worded."""

_LONGEST = 1000  # characters


class DataError(Exception):
    """Says in one sentence what was given, what is wrong with it and what to do."""


def counted(count: int, noun: str) -> str:
    """For example "1 file", "2 files", "116 photographs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """The text with control characters, and what is no character, escaped: a file's name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception | str) -> str:
    r"""A text for a terminal: in one line, of a long one the ends, control characters as escapes like \x1b."""
    text = " ".join(message(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return printable(text)


def message(error: Exception | str) -> str:
    """What an error says; of one that a DataLoader's worker met, without the worker's traceback."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return text
