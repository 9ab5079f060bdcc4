"""Checkpoints to the Hugging Face Hub while training goes on: a process of its own, which nothing here waits for."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import codec
from coco224.errors import DataError
from coco224.repository import open_repository
from codec.errors import InputError
from training.options import ReportingOptions

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds between tries
PATIENCE = 300.0  # seconds that a run which is done waits for its last upload
HURRY = 10.0  # seconds that a run which was told to stop waits


def check_hub(reporting: ReportingOptions, accelerator: Accelerator) -> None:
    """Finds out on the main process whether the Hub will take this run's checkpoints; a Hub that is down may be back.

    Raises:
        InputError: on every rank, where the token is missing, wrong, or may not write there.
    """
    refusal = ""
    if accelerator.is_main_process:
        try:
            reason = open_repository("--hub_model_id", str(reporting.hub_model_id), "model", reporting.hub_private)
            if reason:
                accelerator.print(f"hub         out of reach ({reason}); training starts all the same", file=sys.stderr)
        except DataError as error:
            refusal = str(error)
    if refusal := broadcast_object_list([refusal])[0]:
        raise InputError(refusal)


class Uploads:
    """`python -m codec.push` in the background, again after each checkpoint, one at a time, until the newest is up.

    The upload is another process so that a slow Hub costs training neither the interpreter's lock nor its own end.
    What fails is tried again after a pause that grows, or at once with the next checkpoint.

    Args:
        checkpoint: the file that is replaced, whole, at each save.
        say: prints a line.
        plugin: the file of the codec's own blocks.
        recon_dir: folder of the run's reconstructions.
    """

    def __init__(
        self,
        checkpoint: Path,
        reporting: ReportingOptions,
        say: Callable[[str], None],
        plugin: str | None,
        recon_dir: str,
    ) -> None:
        self.repository = str(reporting.hub_model_id)
        self.words = ["-m", "codec.push", "--checkpoint", str(checkpoint), "--hub_model_id", self.repository]
        self.words += ["--recon_dir", recon_dir]
        self.words += ["--hub_private", "true"] if reporting.hub_private else []
        self.words += ["--plugin", plugin] if plugin else []
        self.say = say
        self.changed = threading.Condition()
        self.asked = 0  # checkpoints that were saved
        self.settled = 0  # up to which the Hub has them, or has refused them
        self.complete = True
        self.finished = False
        self.process: subprocess.Popen[str] | None = None
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def command(self) -> str:
        """What completes the upload by hand."""
        return shlex.join(["python", *self.words])

    def request(self) -> None:
        """Says that there is a new checkpoint. Returns at once."""
        with self.changed:
            self.asked += 1
            self.changed.notify_all()

    def finish(self, seconds: float) -> bool:
        """Uploads what is there now, waiting at most this long; whether the Hub has it all."""
        self.request()
        with self.changed:
            done = self.changed.wait_for(lambda: self.settled == self.asked, seconds) and self.complete
            self.finished = True
            self.changed.notify_all()
        if self.process:
            self.process.terminate()
        return done

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.asked > self.settled or self.finished)
                target = self.asked
            if self.finished:
                return
            status, reason = self._push()
            with self.changed:
                if self.finished:  # given up: the end of the run has said so
                    return
                if status == os.EX_TEMPFAIL:
                    self.say(f"hub         {reason}; next try in {pause:.0f} s or with the next checkpoint")
                    self.changed.wait_for(lambda t=target: self.asked > t or self.finished, pause)  # type: ignore[misc]
                    pause = FIRST_PAUSE if self.asked > target else min(2 * pause, LONGEST_PAUSE)
                    continue
                if status:
                    self.say(f"hub         {reason}; next try with the next checkpoint")
                self.complete, self.settled, pause = not status, target, FIRST_PAUSE
                self.changed.notify_all()

    def _push(self) -> tuple[int, str]:
        """The exit status of an upload, and the line it said."""
        root = str(Path(codec.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, *self.words],
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the training
        )
        said = self.process.communicate()[1].strip().splitlines()
        return self.process.returncode, (said or ["it said nothing"])[-1].removeprefix("error: ")
