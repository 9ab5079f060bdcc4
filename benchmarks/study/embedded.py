"""Studies whose codecs all begin as the embedded GDN codec, which took hours of training that a study has not.

The embedded codec has several rates and a hyperprior. For another architecture its g_a and g_s get the entropy models
of that, which are fitted to its y, and all of it trains on for some steps first.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from torch import Tensor

from benchmarks.study.plan import BUDGETS, Job, Study
from benchmarks.study.run import training_crops
from codec.checkpoint.ours import load_codec, save_codec
from codec.evaluation.curves import Point
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.sample import GDN, to_start_from
from training.klt import PICTURES, start_entropy_models

FIRST = "first"


class EmbeddedStudy(Study):
    """The jobs of an architecture."""

    def __init__(self, budget: str, folder: Path, crops: Path, arch: str) -> None:
        super().__init__(replace(BUDGETS[budget], arch=arch), folder, crops)
        self.embedded, self.description = load_codec(to_start_from(GDN))

    @property
    def lambdas(self) -> str:
        """The range of lambdas of the embedded codec."""
        return f"{self.description.options['lambda_mse']}"

    def stages(self) -> Iterator[list[Job]]:
        """See `Study.stages`; what the runs start from is written first."""
        b, start = self.budget, self.embedded
        if b.arch != start.arch:
            self.keep(FIRST, with_other_entropy_models(start, b.arch, training_crops(self, PICTURES)))
            first = self.trained_on(FIRST, self.lambdas, b.first_steps, b.rates[-1])
            yield [first]
            start, _ = load_codec(self.ended(first.name))
        yield from self.stages_from(start)

    @abstractmethod
    def stages_from(self, start: Codec) -> Iterator[list[Job]]:
        """The stages from the GDN codec of this architecture."""

    def keep(self, name: str, codec: Codec) -> None:
        """Writes what a codec's runs start from, unless it is there."""
        path = self.ended(f"{name}-start")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_codec(path, with_tables(codec), self.description)

    def ended(self, name: str) -> Path:
        """The last checkpoint of a run."""
        return self.folder / name / "last.safetensors"

    def trained_on(self, name: str, lambda_mse: float | str, steps: int, lr: float) -> Job:
        """The run of a GDN codec at a learning rate, from what was kept."""
        options = ("--act", "gdn", *schedule(steps, lr), "--compile", "true")
        return Job(f"{name}-lr{lr:g}", lambda_mse, steps, options, f"{name}-start")


def schedule(steps: int, lr: float) -> tuple[object, ...]:
    """The options that all runs share, of so many steps at a learning rate."""
    return ("--lr", lr, "--lr_warmup_steps", min(50, steps - 1))


def with_other_entropy_models(codec: Codec, arch: str, pictures: Tensor) -> Codec:
    """A codec of several rates with g_a, g_s and gains of another one, and entropy models fitted to its y.

    Args:
        pictures: [B, 3, H, W].
    """
    other = new_codec(replace(codec.architecture, arch=arch))
    kept = {name: each for name, each in codec.state_dict().items() if name.startswith(("g_a.", "g_s.", "y_gains."))}
    other.load_weights(other.state_dict() | kept)
    start_entropy_models(other, pictures.split(8))
    return other


def point_of(rows: Sequence[Mapping[str, float]]) -> Point:
    """The point of a codec's figures, a picture each."""
    return Point(*(mean(row[key] for row in rows) for key in ("bpp", "psnr", "ms_ssim")))
