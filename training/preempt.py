"""Signals to one flag. Imports nothing heavy, so that it can be installed before torch is."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PREEMPTED = os.EX_TEMPFAIL  # exit status 75: stopped by a signal, with a checkpoint saved
INTERRUPTED_TWICE = 130
_SECONDS = 4.0  # that an orderly end may take where nothing is to be saved


class Preempted(BaseException):
    """A signal came while there was nothing to save. No Exception: no library shall take it for an error of its own."""


class StopSignal:
    """Remembers the first of SIGTERM, SIGINT or SIGUSR1; a second SIGINT ends the process at once.

    `at_once` has signals raise Preempted where they come, as long as nothing is lost by it.
    """

    def __init__(self) -> None:
        self.name = ""
        self.interrupted = False
        self._raises = self._ends = False

    def install(self) -> "StopSignal":
        """Takes the signals over; returns itself."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)
        return self

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Preempted.

        Raises:
            Preempted: a signal comes.
        """
        before, self._raises = self._raises, True
        try:
            yield
        finally:
            self._raises = before and not self.name

    def start(self) -> None:
        """Signals raise Preempted until `begun`; a process that has not ended some seconds later is ended."""
        self._raises = self._ends = True

    def begun(self) -> None:
        """There is something to save from now on: signals are remembered until the loop looks."""
        self._raises = self._ends = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                os._exit(INTERRUPTED_TWICE)
            self.interrupted = True
        self.name = self.name or signal.Signals(number).name
        if self._ends:  # a compiler's threads, or a library that took the exception, may go on for minutes
            timer = threading.Timer(_SECONDS, os._exit, [PREEMPTED])
            timer.daemon = True
            timer.start()
        if self._raises:
            self._raises = False
            raise Preempted
