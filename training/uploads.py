"""Uploads checkpoints to the Hugging Face Hub during training, in a separate process; training does not wait."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import codec
from coco224.errors import DataError
from coco224.repository import open_repository
from codec.errors import InputError
from training.reporting import ReportingOptions

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds between tries
PATIENCE = 300.0  # seconds that a finished run waits for its last upload
HURRY = 10.0  # seconds that a run waits after a signal to stop


def check_hub(reporting: ReportingOptions, accelerator: Accelerator) -> None:
    """Checks on the main process that this token may upload. If the Hub is down now, it may be available later.

    Raises:
        InputError: on every rank, if the token is missing, wrong, or may not write there.
    """
    refusal = ""
    if accelerator.is_main_process:
        try:
            reason = open_repository("--hub_model_id", str(reporting.hub_model_id), "model", reporting.hub_private)
            if reason:
                accelerator.print(f"hub         {reason}; training starts anyway", file=sys.stderr)
        except DataError as error:
            refusal = str(error)
    if refusal := broadcast_object_list([refusal])[0]:
        raise InputError(refusal)


class Uploads:
    """Runs `python -m codec.push` in the background after a checkpoint: one upload at a time, and at most one waits.

    An upload is a separate process, so that a slow Hub neither holds the interpreter's lock nor delays the end of
    training. It sends the checkpoint that exists when it begins, so a new request replaces one that waits. If the Hub
    cannot be reached, the upload tries again after a growing pause, or when there is another checkpoint.

    Args:
        checkpoint: the file, which every save replaces.
        say: prints a line.
        plugin: the file of the codec's own blocks.
    """

    def __init__(
        self,
        checkpoint: Path,
        reporting: ReportingOptions,
        say: Callable[[str], None],
        plugin: str | None,
    ) -> None:
        self.repository = str(reporting.hub_model_id)
        self.words = ["-m", "codec.push", "--checkpoint", str(checkpoint), "--hub_model_id", self.repository]
        self.words += ["--hub_private", "true"] if reporting.hub_private else []
        self.words += ["--plugin", plugin] if plugin else []
        self._say = say
        self._thread = ThreadPoolExecutor(1, "uploads")
        self._last: Future[bool] | None = None
        self._newer, self._over = Event(), Event()
        self._process: subprocess.Popen[str] | None = None

    @property
    def command(self) -> str:
        """The command that completes the upload by hand."""
        return shlex.join(["python", *self.words])

    def request(self) -> None:
        """Requests an upload of the new checkpoint. Returns at once."""
        self._newer.set()
        if self._last:
            self._last.cancel()  # works only if it has not begun; the next upload sends the same file
        self._last = self._thread.submit(self._upload)

    def finish(self, seconds: float) -> bool:
        """Uploads the present files, and waits at most this long; returns whether the upload is complete."""
        self.request()
        assert self._last
        done, _ = wait([self._last], seconds)
        self.abandon()
        return bool(done) and self._last.result()

    def abandon(self) -> None:
        """Ends the uploads without waiting; Python would not end before their thread does."""
        self._over.set()
        self._newer.set()
        if self._process:
            self._process.kill()  # an orderly end could wait for the network

    def _upload(self) -> bool:
        """Pushes until the Hub has the checkpoint or refuses it; returns whether the Hub has it."""
        pause = FIRST_PAUSE
        while not self._over.is_set():
            self._newer.clear()
            status, reason = self._push()
            if not status:
                return True
            if self._over.is_set():  # the time is over; the end of the run prints that
                break
            if status != os.EX_TEMPFAIL:
                self._say(f"hub         {reason}; next try with the next checkpoint")
                break
            self._say(f"hub         {reason}; next try in {pause:.0f} s or with the next checkpoint")
            pause = FIRST_PAUSE if self._newer.wait(pause) else min(2 * pause, LONGEST_PAUSE)
        return False

    def _push(self) -> tuple[int, str]:
        """Runs an upload; returns its exit status and its last line."""
        root = str(Path(codec.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, *self.words],
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches only the training
        )
        said = self._process.communicate()[1].strip().splitlines()
        return self._process.returncode, (said or ["it said nothing"])[-1].removeprefix("error: ")
