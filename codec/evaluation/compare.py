"""The work of `codec.evaluate`: all ranks measure codecs and references on the same pictures."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from coco224.errors import one_line
from codec.bitstream.gains import STEPS
from codec.checkpoint import open_codec
from codec.errors import InputError, SomeFailed
from codec.evaluation.album import Album, Shown, spread
from codec.evaluation.coded import Decoded, through_files
from codec.evaluation.curves import PUBLISHED, Curve, curve, read_curve
from codec.evaluation.figures import Evaluated, Figures, means, sums_and_counts
from codec.evaluation.pictures import Batches, Failures, Pictures
from codec.evaluation.ranks import Ranks
from codec.evaluation.references import QUALITIES, check_sides, through_pillow
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.quantization.phases import disable_fake_quant


@dataclass(frozen=True)
class Comparison:
    """Codecs and references, measured on the same pictures.

    Attributes:
        ours: the codecs.
        theirs: the references that were measured, in the given order.
        curves: one curve for each kind of codec, then one for each reference.
        shown: the pictures for the report.
        failures: the pictures that could not be evaluated, with the reasons; nothing else here includes them.
    """

    pictures: Pictures
    ours: list[Evaluated]
    theirs: list[Evaluated]
    curves: list[Curve]
    shown: list[Shown]
    failures: list[str]


def measure_all(
    checkpoints: Sequence[str],
    references: Sequence[str],
    pictures: Pictures,
    ranks: Ranks,
    *,
    fake_quant: bool,
    keep_pictures: bool,
    rates: int | None = None,
) -> Comparison:
    """Measures checkpoints and references on all ranks; each rank codes its share of the pictures.

    Args:
        references: checkpoints, Pillow's formats, "published", or JSON files with a curve.
        fake_quant: False measures checkpoints of quantization-aware training in float.
        keep_pictures: keep some pictures and their reconstructions.
        rates: how many rates of a codec with several are measured; None: its trained ones.

    Raises:
        InputError: a checkpoint or a reference cannot be read, a codec's training has diverged, or no picture works.
    """
    codecs = {path: open_codec(Path(path)) for path in checkpoints}
    for codec in codecs.values():
        if codec.architecture.quantization and not fake_quant:
            disable_fake_quant(codec)
    anchors = {path: open_codec(Path(path)) for path in references if _is_checkpoint(path)}
    known = [read_curve(_curve_file(name)) for name in references if _curve_file(name).suffix == ".json"]
    formats = [name for name in references if name in QUALITIES]
    for name in formats:
        check_sides(name, pictures.files)
    compared = (len(codecs) + len(anchors) + len(formats)) * len(numbers_of(next(iter(codecs.values())), rates))
    album = Album(spread(len(pictures.names), compared) if keep_pictures else ())

    work = _Work(pictures, ranks, album)
    found = {"": [each for name, codec in codecs.items() for each in work.through_codec(name, codec, rates)]}
    found["reference"] = [each for name, codec in anchors.items() for each in work.through_codec(name, codec, rates)]
    for name in formats:
        found[name] = [work.through_format(name, quality) for quality in QUALITIES[name]]
    kept = [index for index in range(len(pictures.names)) if index not in work.failures]
    figures = {name: [each.on(kept) for each in points] for name, points in found.items()}
    ours = figures.pop("")
    return Comparison(
        replace(pictures, names=[pictures.names[index] for index in kept]),
        ours,
        [each for points in figures.values() for each in points],
        [*_by_blocks(ours), *(_curve(name, points) for name, points in figures.items() if points), *known],
        [replace(each, index=kept.index(each.index)) for each in album.gather(ranks) if each.index in kept],
        work.reasons(),
    )


def _is_checkpoint(reference: str) -> bool:
    return reference not in QUALITIES and _curve_file(reference).suffix != ".json"


def _curve_file(reference: str) -> Path:
    return PUBLISHED if reference == "published" else Path(reference)


@dataclass(frozen=True)
class _Measured:
    """A codec's figures, by the picture's index."""

    name: str
    rows: dict[int, Figures]
    blocks: str = ""

    def on(self, indices: Sequence[int]) -> Evaluated:
        """The codec on these pictures alone."""
        rows = [self.rows[index] for index in indices]
        return Evaluated(self.name, rows, means(sums_and_counts(rows)), self.blocks)


class _Work:
    """Measures one codec after the other; each rank codes its share of the pictures and keeps some in the album.

    Attributes:
        failures: the pictures of all ranks that failed so far. The next codecs pass over them.
    """

    def __init__(self, pictures: Pictures, ranks: Ranks, album: Album) -> None:
        self._pictures, self._ranks, self._album = pictures, ranks, album
        self.failures: Failures = {}

    def through_codec(self, name: str, codec: Codec, rates: int | None) -> Iterator[_Measured]:
        """The figures on all pictures, on every rank, at each rate.

        Raises:
            InputError: the codec's training has diverged, or all pictures failed.
        """
        files = FileCodec(codec.to(self._ranks.device), name)
        for number in numbers_of(codec, rates):
            rate = "" if number is None else f" at rate {number / (STEPS * (codec.architecture.rates - 1)):.3f}"
            point = name + rate
            rows = self._rows(name, point, through_files(files, self._batches(), self.failures, number))
            yield _Measured(point, rows, codec.architecture.in_short())
        codec.cpu()

    def through_format(self, name: str, quality: int) -> _Measured:
        """The same for one of Pillow's formats."""
        point = f"{name} {quality}"
        coded = through_pillow(name, quality, self._batches(), self._ranks.device)
        return _Measured(point, self._rows(name, point, coded))

    def reasons(self) -> list[str]:
        """A sentence for each picture that failed."""
        return [f"{self._pictures.names[index]}: {reason}" for index, reason in sorted(self.failures.items())]

    def _batches(self) -> Batches:
        return self._pictures.read(self._ranks.rank, self._ranks.world_size, self.failures)

    def _rows(self, codec: str, name: str, decoded: Iterable[Decoded]) -> dict[int, Figures]:
        ranks, names = self._ranks, self._pictures.names
        progress = tqdm(
            self._album.keep(codec, name, decoded),
            desc=one_line(Path(name).name),
            total=len(range(ranks.rank, len(names), ranks.world_size)),
            unit=" pictures",
            leave=False,
            disable=ranks.rank != 0,
        )
        rows = dict(ranks.gather(progress))
        self.failures.update(ranks.gather(self.failures.items()))
        assert rows.keys() | self.failures.keys() == set(range(len(names))), "a picture was lost"
        if len(self.failures) == len(names):
            raise SomeFailed(self.reasons(), len(names), "picture")
        if not all(math.isfinite(row.l1) for row in rows.values()):
            raise InputError(f"{name} gives values that are not finite; its training has diverged, use an earlier one")
        return rows


def numbers_of(codec: Codec, wanted: int | None) -> list[int | None]:
    """The numbers of the rates to measure: `wanted` of them, or the trained ones; None for a codec's only rate."""
    trained = codec.architecture.rates
    if trained == 1:
        return [None]
    count = wanted or trained
    return [round(place * STEPS * (trained - 1) / (count - 1)) for place in range(count)]


def _by_blocks(ours: list[Evaluated]) -> list[Curve]:
    """One curve for each combination of blocks and precision: int8 and float codecs are not on one curve."""
    alike: dict[str, list[Evaluated]] = {}
    for each in ours:
        alike.setdefault(each.blocks, []).append(each)
    return [_curve(blocks if len(alike) > 1 else "npu-image-codec", points) for blocks, points in alike.items()]


def _curve(name: str, points: list[Evaluated]) -> Curve:
    return curve(name, [each.point for each in points if each.point])
