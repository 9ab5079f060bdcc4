"""The one exception that means "bad input": every command turns it into one line and exit status 2."""


class InputError(Exception):
    """Says in one sentence what was given, what is wrong with it and what to do."""
