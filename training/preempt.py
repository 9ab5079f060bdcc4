"""Signals set a flag. Imports nothing heavy, so that handlers can be installed before torch is imported."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from coco224.command import SignalCame

PREEMPTED = os.EX_TEMPFAIL  # exit status 75: stopped by a signal, with a checkpoint saved
INTERRUPTED_TWICE = 130
_SECONDS = 4.0  # longest time for an orderly end if nothing is to be saved
_AGAIN_SECONDS = 0.05  # until Preempted is raised again where Python dropped it
_exit = os._exit  # a handler may interrupt a plugin's code, which must not end the process (codec.blocks.guard)


class Preempted(SignalCame):
    """A signal came while there was nothing to save."""


class Stopped(Exception):
    """A signal came during an evaluation or a compilation; the resumed run repeats it."""


class StopSignal:
    """Remembers the first of SIGTERM, SIGINT or SIGUSR1; a second SIGINT ends the process at once.

    Inside `at_once`, signals raise Preempted immediately: for work that loses nothing by it.
    """

    def __init__(self) -> None:
        self.name = ""
        self.interrupted = False
        self._raises = self._ends = False

    def install(self) -> "StopSignal":
        """Installs the signal handlers; returns itself."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)
        return self

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside this context, a signal raises Preempted.

        Raises:
            Preempted: a signal comes.
        """
        before, self._raises = self._raises, True
        try:
            yield
        finally:
            self._raises = before and not self.name

    def start(self) -> None:
        """Signals raise Preempted until `begun`; a process that does not end some seconds later is killed."""
        self._raises = self._ends = True
        atexit.register(self._leave)  # called after the hooks of libraries, which are registered later

    def begun(self) -> None:
        """From now on there is something to save: signals only set the flag, which the loop reads."""
        self._raises = self._ends = False

    def _leave(self) -> None:
        """Ends a stopped process without the interpreter's own end, which takes seconds on a busy machine."""
        if self._ends and self.name:
            sys.stderr.flush()
            _exit(PREEMPTED)

    def _interrupt(self) -> NoReturn:
        """Raises Preempted, and keeps libraries and Python from reporting it with a traceback."""
        self._raises = False
        warnings.filterwarnings("ignore", "Error detected in")  # autograd's, inside a compilation
        sys.unraisablehook = self._dropped
        raise Preempted

    def _dropped(self, lost: "sys.UnraisableHookArgs") -> None:
        """Python drops an exception in a callback of the garbage collector. Raises Preempted again soon after it."""
        if not isinstance(lost.exc_value, Preempted):
            sys.__unraisablehook__(lost)
            return
        self._raises = True
        again = threading.Timer(_AGAIN_SECONDS, os.kill, [os.getpid(), signal.SIGUSR1])
        again.daemon = True
        again.start()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                _exit(INTERRUPTED_TWICE)
            self.interrupted = True
        self.name = self.name or signal.Signals(number).name
        if self._ends:  # a compiler's threads, or a library that caught the exception, may continue for minutes
            timer = threading.Timer(_SECONDS, _exit, [PREEMPTED])
            timer.daemon = True
            timer.start()
        if self._raises:
            self._interrupt()
