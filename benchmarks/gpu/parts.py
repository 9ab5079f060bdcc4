"""The parts: what is checked first, what is measured after that."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu import compilation, exchange, numbers, peer, ranks, reduction, speed, steps, stops, waits
from benchmarks.gpu.setting import Setting
from benchmarks.harness import Row


@dataclass(frozen=True)
class Part:
    """A part of the script.

    Attributes:
        name: on the command line and in the results.
        run: yields its figures; a figure that misses its bar, or an exception, is a failure.
        gpus: how many it needs.
        seconds: its time limit.
        measures: it measures time, so that nothing else may run beside it.
    """

    name: str
    run: Callable[[Setting], Iterator[Row]]
    gpus: int = 1
    seconds: float = 180
    measures: bool = False


ACTS = ("relu", "gate_mlp", "gdn")
"""The blocks whose speed is measured."""

_CHECKS = (
    Part("relu-bf16", steps.relu),
    Part("gdnish-fp16", steps.gdnish),
    Part("gate_mlp-distilled", steps.gate_mlp),
    Part("qat", steps.qat, seconds=300),
    Part("hyperprior-bf16", steps.hyperprior),
    Part("first-losses", numbers.first_losses),
    Part("compiled-eager", numbers.compiled, seconds=300),
    Part("host-waits", waits.host_waits, seconds=300),
    Part("stop-resume", stops.stop_and_resume),
    Part("files", exchange.exchange),
    Part("fsdp-1", ranks.sharded_on_one),
    *(Part(f"compile-q8-{act}", partial(speed.compile_ahead, quality=8, act=act)) for act in ACTS),
)
_CHECKS_OF_TWO = (
    Part("ddp", ranks.ddp, gpus=2),
    Part("ddp-qat", ranks.ddp_qat, gpus=2),
    Part("usr1-rank-1", ranks.one_rank_told, gpus=2),
    Part("killed-rank", ranks.one_rank_killed, gpus=2),
    Part("fsdp-2", ranks.sharded_on_two, gpus=2),
    Part("resume-2-to-1", ranks.resume_on_one, gpus=2),
)
_MEASUREMENTS = (
    Part("determinism", speed.determinism, measures=True),
    Part("all-reduce", reduction.all_reduce, gpus=2, measures=True),
    Part("against-compressai", peer.against_compressai, seconds=240, measures=True),
    *(
        Part(
            f"speed-q{quality}-{act}-{'-'.join(map(str, batches))}",
            partial(speed.speed, quality=quality, act=act, batches=batches),
            seconds=300,
            measures=True,
        )
        for quality in (8, 3)
        for batches in (speed.LARGE, speed.SMALLER)
        for act in ACTS
    ),
    Part("compile-options", compilation.compile_options, seconds=480, measures=True),
)

PARTS = (*_CHECKS, *_CHECKS_OF_TWO, *_MEASUREMENTS)
"""In the order of their worth: the time of a machine may end before the last."""
