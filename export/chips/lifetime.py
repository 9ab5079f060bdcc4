"""Compilers that end with the command that started them. Only the standard library: Python 3.10 must read this file."""

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Lets Linux kill this process when its parent ends; elsewhere it outlives a killed parent.

    Args:
        parent: the parent's number; if it is gone already, this process ends at once.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
