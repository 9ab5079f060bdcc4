"""Where a part runs and how large its runs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.cli import run as run_command

COMMON = (
    *("--pretrained", "false", "--train_scope", "all", "--replace_parts", "all", "--sched", "none", "--lr", "1e-3"),
    *("--epochs", 100_000, "--log_every", 1, "--recon_every", 0, "--eval_every", 0),
)
"""Options of every run; --epochs never ends a run before its --max_steps."""

FULL = ("--quality", 3, "--batch_size", 16)
TINY = ("--N", 8, "--M", 12, "--batch_size", 4, "--input_size", 64)


class NotApplicableError(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """The device and the sizes of a part.

    Attributes:
        device: "cuda" or "cpu".
        tiny: the sizes of a dry run, which takes seconds on one core.
        coco224: the dataset.
        folder: the part's own.
    """

    device: str
    tiny: bool
    coco224: Path
    folder: Path

    @property
    def batch_size(self) -> int:
        """Pictures per optimizer step."""
        return 4 if self.tiny else 16

    @property
    def steps(self) -> int:
        """Optimizer steps of a run that is checked."""
        return 6 if self.tiny else 20

    def qat(self) -> tuple[object, ...]:
        """Options of quantization-aware training with each phase in `steps`."""
        learned, frozen = 3 * self.steps // 10, 6 * self.steps // 10
        return ("--qat", "true", "--qat_scope", "all", "--qat_calib_steps", learned, "--qat_freeze_after", frozen)

    def bar(self, value: float) -> float | None:
        """A bar of speed or of learning; None in a dry run, which is too short for it."""
        return None if self.tiny else value

    def options(self, *options: object) -> list[str]:
        """Training options: those of every run, then these, which win."""
        return [str(word) for word in (*COMMON, *(TINY if self.tiny else FULL), *options)]

    def words(self, name: str, *options: object) -> list[str]:
        """The command line of a training run that keeps its files in `folder/name`."""
        folder = self.folder / name
        files = ("--coco_dir", self.coco224, "--save_dir", folder, "--recon_dir", folder / "recon")
        return [*map(str, files), *self.options(*options)]

    def train(self, name: str, *options: object) -> Path:
        """Runs the training command in this process; returns the run's folder."""
        from train_accel import main

        status = main(self.words(name, *options))
        if status:
            raise RuntimeError(f"the run {name} ended with status {status}")
        return self.folder / name

    def step(self, name: str, steps: int, *options: object) -> Path:
        """Runs so many steps of a training run in this process, without what the command does at its end."""
        from benchmarks.trainer import Trainer

        trainer = Trainer(self.coco224, self.folder / name, *self.options(*options))
        for _ in range(steps):
            trainer.step()
        trainer.finish()
        return self.folder / name


def train(words: Sequence[str]) -> None:
    """Runs the training command and ends this process with its status."""
    from train_accel import main

    run_command(lambda: main(words))
