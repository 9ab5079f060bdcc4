"""What each of two ranks does for test_writer.py, which launches it: FOLDER, and the words of a training command.

The disk is slow: no state is saved on it before the *other* rank has done two more steps, if there are any.
"""

import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import training.saving
from train_accel import main
from training.record import Record

PATIENCE = 60  # seconds


def leave_word_of_each_step(folder: Path) -> None:
    step = Record.step

    def outer(self: Record, number: int, *figures: Any) -> None:
        step(self, number, *figures)
        (folder / f"rank-{self.accelerator.process_index}-did-step-{number}").touch()

    patch.object(Record, "step", outer).start()


def slow_down(folder: Path, total: int) -> None:
    save_state = training.saving.save_state

    def outer(states: Path, keep: int, model: Any, optimizer: Any, progress: Any) -> None:
        begin, awaited = time.monotonic(), folder / f"rank-1-did-step-{progress.step + 2}"
        while progress.step + 2 <= total and not awaited.exists():
            assert time.monotonic() < begin + PATIENCE, f"the ranks wait for the state of step {progress.step}"
            time.sleep(0.01)
        save_state(states, keep, model, optimizer, progress)

    patch.object(training.saving, "save_state", outer).start()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, total, *words = sys.argv[1:]
    leave_word_of_each_step(Path(folder))
    slow_down(Path(folder), int(total))
    sys.exit(main([*words, "--max_steps", total]))
