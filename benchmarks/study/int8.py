"""The study of int8: what each block loses in int8, with training and without, from the embedded GDN codec.

Every block takes the place of the GDNs of a codec of all rates, with a distilled start, and trains on in float, and so
does GDN. From there each trains on for int8, for the same steps in float, and is quantized without training. A codec of
all rates gives a whole curve, where one of one rate would give a point.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from statistics import mean

from benchmarks.harness import Row, publish
from benchmarks.rates import as_lists
from benchmarks.study.embedded import EmbeddedStudy, point_of, schedule
from benchmarks.study.plan import Job, Study
from codec.evaluation.curves import Curve, curve, difference
from codec.network.codec import Codec

BUDGET = "int8"
START = "gdn"
TRAINED, FLOAT, QUANTIZED = "int8", "float", "quantized"
"""How a codec goes on: quantization-aware training, the same steps in float, quantization after training."""

BARS = {TRAINED: 1.0, QUANTIZED: 2.0}
OF_BEST = -2.0
"""BD-rate in percent, at most: in int8 against the same codec in float; of the best block in int8 against GDN."""


class Int8Study(EmbeddedStudy):
    """The jobs of an architecture."""

    def stages_from(self, start: Codec) -> Iterator[list[Job]]:
        """See `EmbeddedStudy.stages_from`."""
        b = self.budget
        self.keep(START, start)
        yield [self.swapped(act, seed) for act, seed in product(b.acts, b.seeds)]
        yield [
            self.on(act, seed, way)
            for act, seed, way in product(b.acts, b.seeds, (FLOAT, TRAINED, QUANTIZED))
            if way == FLOAT or act != b.baseline
        ]

    def swapped(self, act: str, seed: int) -> Job:
        """A block in the place of every GDN, in float; GDN itself on."""
        steps = self.budget.extra_steps
        options = ("--act", act, *self.distilled(act), "--seed", seed, *schedule(steps, self.budget.rates[-1]))
        return Job(f"{act}-seed{seed}", self.lambdas, steps, options, f"{START}-start")

    def on(self, act: str, seed: int, way: str) -> Job:
        """On from there; "": not at all."""
        start, steps = self.swapped(act, seed), self.budget.int8_steps
        if not way:
            return start
        name = f"{start.name}-{way}"
        if way == QUANTIZED:
            return Job(name, self.lambdas, 0, (), start.name)
        options = ("--act", act, "--seed", seed, *schedule(steps, self.budget.rates[-1]))
        if way == TRAINED:
            options += ("--qat", "true", "--qat_scope", "all", "--qat_exclude_entropy", "false")
            options += ("--qat_act_observer", "minmax", "--qat_calib_steps", steps // 10)
            options += ("--qat_freeze_after", steps * 3 // 4)
        return Job(name, self.lambdas, steps, options, start.name)

    def curve(self, name: str) -> Curve:
        """The curve of a finished run."""
        rows = self.figures(name)
        assert rows is not None
        return curve(name, [point_of(list(each)) for _, each in groupby(rows, lambda row: row["rate"])])

    def against(self, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
        """BD-rate in percent of (block, way) against another, a seed each."""
        found = []
        for seed in self.budget.seeds:
            tested, reference = (self.curve(self.on(act, seed, way).name) for act, way in (ours, theirs))
            found.append(difference(tested, reference).bd_rate)
        return found

    @property
    def best(self) -> str:
        """The block that is the best one in int8."""
        return min(self.budget.blocks, key=lambda act: mean(self.against_gdn(act)))

    def against_gdn(self, act: str) -> list[float]:
        """BD-rate in percent of a block in int8 against GDN in float, a seed each."""
        return self.against((act, TRAINED), (self.budget.baseline, FLOAT))

    def codec(self) -> Path | None:
        """The int8 codec of the best block; None where a run that decides is not finished."""
        b = self.budget
        decide = [(b.baseline, FLOAT), *((act, TRAINED) for act in b.blocks)]
        names = [self.on(act, seed, way).name for (act, way), seed in product(decide, b.seeds)]
        if any(self.figures(name) is None for name in names):
            return None
        return self.ended(self.on(self.best, b.seeds[0], TRAINED).name)

    def rows(self) -> Iterator[Row]:
        """What each block loses, and how the best one in int8 stands against GDN."""
        b = self.budget
        for act, way in product(b.blocks, (TRAINED, QUANTIZED)):
            how = f"after {b.int8_steps} steps" if way == TRAINED else "without training"
            what = f"{b.arch}, {act}: BD-rate of int8 {how} against float"
            yield self._row(what, self.against((act, way), (act, FLOAT if way == TRAINED else "")), BARS[way])
        best = self.best
        for act in b.blocks:
            what = f"{b.arch}, {act} in int8: BD-rate against GDN in float after the same steps"
            yield self._row(what, self.against_gdn(act), OF_BEST if act == best else None)

    def _row(self, what: str, found: list[float], bar: float | None) -> Row:
        sides = {f"seed {seed}, %": each for seed, each in zip(self.budget.seeds, found, strict=True)}
        return Row(what, mean(found), "%", at_most=bar, sides=sides)


def studies(folder: Path, crops: Path, archs: Sequence[str]) -> dict[str, Study]:
    """One study per architecture."""
    return {arch: Int8Study(BUDGET, folder / arch, crops, arch) for arch in archs}


def summarize(found: Mapping[str, Study], images: str) -> None:
    """Publishes `results/int8_ARCH.json` of each architecture."""
    pictures = Path(images).name
    for arch, study in found.items():
        assert isinstance(study, Int8Study)
        names = sorted(path.parent.name for path in study.folder.glob("*-seed*/figures.json"))
        curves = {name: as_lists(study.curve(name)) for name in names}
        command = f"python -m benchmarks.study --coco_dir COCO --images {pictures} --out DIR --budget {BUDGET}"
        details = {"command": f"{command} --arch {arch}", "pictures": pictures, "budget": vars(study.budget)}
        publish(f"{BUDGET}_{arch}", list(study.rows()), details | {"curves": curves})
