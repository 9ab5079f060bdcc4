"""The exception for bad data, which every command turns into one line, and helpers for the wording of such lines."""

_LONGEST = 1000  # characters


class DataError(Exception):
    """Its message says in one sentence what was given, what is wrong with it and what to do."""


def counted(count: int, noun: str) -> str:
    """For example "1 file", "2 processes", "116 photographs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def printable(text: str) -> str:
    """Escapes control characters and invalid characters: a file name must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception | str) -> str:
    r"""A text as one line for a terminal: a long text is cut in the middle, control characters are escaped (\x1b)."""
    text = " ".join(message(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return printable(text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of an error without one its class."""
    return (str(error) or type(error).__name__).splitlines()[0]


def message(error: Exception | str) -> str:
    """The message of an error; without the traceback that a DataLoader adds to an error of its worker."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return text
