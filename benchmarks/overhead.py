"""`python -m benchmarks.overhead`: what the trainer costs around its own compiled step."""

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Row, alternate, publish
from benchmarks.pictures import prepared
from benchmarks.step import BATCH, MSE
from benchmarks.trainer import Trainer

ROUNDS = 15


def main() -> None:
    """Reading, recording, agreeing on faults and stops: against the same step on a batch already in memory."""
    with TemporaryDirectory() as name:
        trainer = Trainer(prepared(Path(name)), Path(name) / "run", "--act", "relu", *MSE)
        trainer.hold()
        seconds = alternate({"trainer": trainer.step, "bare": trainer.bare_step}, ROUNDS, warmup=2)
    what = "the trainer's pictures/s over the bare compiled step, quality 3, ReLU everywhere"
    rates = {f"{side}, pictures/s": BATCH / seconds[side] for side in seconds}
    publish("overhead", [Row(what, seconds["bare"] / seconds["trainer"], "x", at_least=0.97, sides=rates)])


if __name__ == "__main__":
    main()
