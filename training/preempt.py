"""Signals to one flag. Imports nothing heavy, so that it can be installed before torch is."""

import os
import signal
from types import FrameType

PREEMPTED = os.EX_TEMPFAIL  # exit status 75: stopped by a signal, with a checkpoint saved
INTERRUPTED_TWICE = 130


class StopSignal:
    """Remembers the first of SIGTERM, SIGINT or SIGUSR1; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.name = ""
        self.interrupted = False

    def install(self) -> "StopSignal":
        """Takes the signals over; returns itself."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                os._exit(INTERRUPTED_TWICE)
            self.interrupted = True
        self.name = self.name or signal.Signals(number).name
