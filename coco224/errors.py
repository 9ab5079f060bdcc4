"""The one exception that means "bad data": every command turns it into one line and exit status 2."""

_LONGEST = 1000  # characters


class DataError(Exception):
    """Says in one sentence what was given, what is wrong with it and what to do."""


def one_line(error: Exception) -> str:
    r"""An error's text for a terminal: in one line, of a long one the ends, control characters as escapes like \x1b."""
    text = " ".join(message(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def message(error: Exception) -> str:
    """What an error says; of one that a DataLoader's worker met, without the worker's traceback."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return text
