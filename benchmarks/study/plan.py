"""What the study runs, and how large: its budgets, and the runs of each with their options."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from codec.description.architecture import DEFAULT_ARCH

PLUGIN = Path(__file__).with_name("blocks.py")
CONTROL = "linear"
WITHOUT_MAP = ("gdn", "relu")  # nothing that a distilled start could teach
MINMAX = ("relu", "shelf")  # blocks without heavy tails: int8 ranges hold all that passed, and nothing is cut


KLT = ("--klt_start", "true", "--lr", 4e-4)
"""How a GDN codec starts as a transform coder; the rate is the largest that docs/training.md advises."""


@dataclass(frozen=True)
class Budget:
    """How large and how long.

    Attributes:
        first_steps: of the first codec, from random weights, with the lambda in the middle.
        base_steps: of the codecs of the other lambdas, from that one, and of itself once more.
        extra_steps: of each block, and of the baseline, from there.
        int8_steps: of quantization-aware training, and of float training, from there.
        jobs: runs side by side.
        swaps: measure each block also as it starts, before it trains.
        baseline: what the first codec has, and all others begin as.
        start: the options with which the first codec trains from random weights.
        arch: the architecture of all codecs.
    """

    N: int
    M: int
    batch_size: int
    input_size: int
    first_steps: int
    base_steps: int
    distill_steps: int
    extra_steps: int
    int8_steps: int
    lambdas: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    int8_seeds: tuple[int, ...]
    blocks: tuple[str, ...]
    int8_blocks: tuple[str, ...]
    jobs: int
    swaps: bool = True
    baseline: str = "gdn"
    start: tuple[object, ...] = ("--lr", 1e-3)
    arch: str = DEFAULT_ARCH

    @property
    def middle(self) -> float:
        """The lambda of the first codec and of the sweep."""
        return self.lambdas[len(self.lambdas) // 2]

    @property
    def acts(self) -> tuple[str, ...]:
        """The baseline and the blocks."""
        return (self.baseline, *self.blocks)


CPU = Budget(
    N=48,
    M=64,
    batch_size=8,
    input_size=128,
    first_steps=12_000,
    base_steps=6000,
    distill_steps=60,
    extra_steps=600,
    int8_steps=300,
    lambdas=(0.0035, 0.0067, 0.013, 0.025),
    rates=(1e-4, 3e-4, 1e-3),
    seeds=(0, 1),
    int8_seeds=(0, 1),
    blocks=("linear", "relu", "shelf", "gdnish", "gate", "gate_grouped", "gate_pieces", "gate_local"),
    int8_blocks=("relu", "shelf", "gate", "gate_local"),
    jobs=2,
)
BUDGETS = {
    "cpu": CPU,
    "cpu_long": replace(
        CPU,
        distill_steps=200,
        extra_steps=1800,
        int8_steps=600,
        rates=(3e-4, 1e-3, 3e-3),
        blocks=("linear", "relu", "relu_mlp", "gate", "gate_mlp"),
        int8_blocks=(),  # `int8` measures them
    ),
    "cpu_int8": replace(
        CPU,
        first_steps=8000,
        base_steps=3000,
        extra_steps=300,
        int8_steps=600,
        rates=(5e-4,),
        blocks=(),
        int8_blocks=("relu",),
        baseline="relu",
    ),
    "architectures": replace(
        CPU,
        batch_size=2,
        input_size=256,
        start=KLT,
        first_steps=3000,
        base_steps=1500,
        extra_steps=300,
        int8_steps=200,
        rates=(5e-4,),
        seeds=(0,),
        int8_seeds=(0,),
        blocks=("relu_mlp", "gate", "gate_mlp"),
        int8_blocks=("gate_mlp",),
        distill_steps=100,
        jobs=1,
        swaps=False,
    ),
    "rates": replace(
        CPU, N=64, M=160, batch_size=2, input_size=256, first_steps=600, extra_steps=600, rates=(1e-5, 1e-4)
    ),
    "int8": replace(
        CPU,
        N=64,
        M=160,
        batch_size=2,
        input_size=256,
        first_steps=600,
        distill_steps=200,
        extra_steps=400,
        int8_steps=400,
        rates=(1e-4,),
        blocks=("gdnish", "gate", "relu_mlp", "gate_mlp"),
    ),
    "gpu": replace(
        CPU,
        start=KLT,
        N=128,
        M=192,
        batch_size=32,
        input_size=224,
        first_steps=60_000,
        base_steps=20_000,
        distill_steps=300,
        extra_steps=5_000,
        int8_steps=3_000,
        blocks=("linear", "relu", "relu_mlp", "gdnish", "gate", "gate_mlp"),
        int8_blocks=("relu", "relu_mlp", "gate", "gate_mlp"),
        jobs=1,
    ),
    "smoke": replace(
        CPU,
        N=8,
        M=12,
        batch_size=2,
        input_size=64,
        first_steps=3,
        base_steps=2,
        distill_steps=1,
        extra_steps=2,
        int8_steps=10,
        lambdas=(0.005, 0.02),
        rates=(1e-3,),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: its options, and the run whose last checkpoint it starts from (None: random weights).

    Without steps it is quantized instead of trained.
    """

    name: str
    lambda_mse: float | str
    steps: int
    options: tuple[object, ...]
    start: str | None = None


class Study:
    """The jobs of a budget, in an order in which each finds what it starts from.

    Args:
        folder: of the runs, one in a folder of its own.
        crops: the dataset that all runs train on.
    """

    def __init__(self, budget: Budget, folder: Path, crops: Path) -> None:
        self.budget, self.folder, self.crops = budget, folder, crops

    def figures(self, name: str) -> list[dict[str, float]] | None:
        """A finished run's figures, a picture each; None where it is not finished."""
        path = self.folder / name / "figures.json"
        return json.loads(path.read_text()) if path.exists() else None

    def rd_loss(self, name: str, lambda_mse: float) -> float:
        """Mean over pictures of lambda 255^2 MSE + bpp: 8-bit pictures, real bytes."""
        rows = self.figures(name)
        assert rows is not None
        return sum(lambda_mse * 255**2 * 10 ** (-row["psnr"] / 10) + row["bpp"] for row in rows) / len(rows)

    def stages(self) -> Iterator[list[Job]]:
        """Jobs that may run side by side; a stage is made up when those before it are done."""
        b = self.budget
        first: tuple[object, ...] = ("--arch", b.arch, "--act", b.baseline, "--pretrained", "false")
        first += ("--N", b.N, "--M", b.M, "--lr_warmup_steps", min(200, b.first_steps - 1))
        yield [Job("first", b.middle, b.first_steps, (*first, *b.start))]
        yield [Job(self.base(x), x, b.base_steps, ("--act", b.baseline, "--lr", 5e-4), "first") for x in b.lambdas]
        if b.swaps:
            yield [self.swap(act, x) for act in b.blocks for x in b.lambdas]
        yield [self.block(act, b.middle, b.seeds[0], rate) for act in b.acts for rate in b.rates]
        yield [self.block(act, x, s, self.rate(act)) for act in b.acts for x in b.lambdas for s in b.seeds]
        if b.int8_blocks:
            yield [
                self.further(act, x, s, int8)
                for act in dict.fromkeys((b.baseline, *b.int8_blocks))
                for x, s, int8 in product(b.lambdas, b.int8_seeds, (False, True))
                if not int8 or act in b.int8_blocks
            ]

    def block(self, act: str, lambda_mse: float, seed: int, rate: float) -> Job:
        """The baseline to a block and on; the baseline itself on."""
        name = f"{act}-{lambda_mse}-seed{seed}-lr{rate:g}"
        options = ("--act", act, *self.distilled(act), "--lr", rate, "--lr_warmup_steps", 20, "--seed", seed)
        return Job(name, lambda_mse, self.budget.extra_steps, options, self.base(lambda_mse))

    def swap(self, act: str, lambda_mse: float) -> Job:
        """A block as it starts: one step of a rate at which nothing moves."""
        options = ("--act", act, *self.distilled(act), "--lr", 1e-12, "--eb_aux", "false")
        return Job(f"{act}-{lambda_mse}-swap", lambda_mse, 1, options, self.base(lambda_mse))

    def distilled(self, act: str) -> tuple[object, ...]:
        """A distilled start, for blocks with something to learn."""
        return () if act in WITHOUT_MAP else ("--distill_steps", self.budget.distill_steps)

    def rate(self, act: str) -> float:
        """The learning rate of the sweep at which a block ended best."""
        b = self.budget
        return min(b.rates, key=lambda rate: self.rd_loss(self.block(act, b.middle, b.seeds[0], rate).name, b.middle))

    def further(self, act: str, lambda_mse: float, seed: int, int8: bool) -> Job:
        """On from a block's best run: in int8, both transforms, or in float."""
        start, steps = self.block(act, lambda_mse, seed, self.rate(act)).name, self.budget.int8_steps
        options: tuple[object, ...] = ("--act", act, "--lr", 2e-4, "--lr_warmup_steps", min(20, steps - 1))
        if int8:
            phases = ("--qat_calib_steps", steps // 10, "--qat_freeze_after", steps * 3 // 4)
            observer = "minmax" if act in MINMAX else "ema"
            options += ("--qat", "true", "--qat_scope", "all", "--qat_act_observer", observer, *phases)
        options += ("--seed", seed)
        return Job(f"{start}-{'int8' if int8 else 'float'}", lambda_mse, steps, options, start)

    def base(self, lambda_mse: float) -> str:
        """The run of the baseline's codec of a lambda."""
        return f"{self.budget.baseline}-{lambda_mse}"
