"""The exception for bad input: every command turns it into one line on stderr and exit status 2."""


class InputError(Exception):
    """Its message says in one sentence what was given, what is wrong with it and what to do."""
