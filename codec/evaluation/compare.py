"""The work of `codec.evaluate`: all ranks measure codecs and references on the same pictures."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from coco224.errors import one_line
from codec.checkpoint import open_codec
from codec.errors import InputError
from codec.evaluation.album import Album, Shown, spread
from codec.evaluation.coded import through_files
from codec.evaluation.curves import PUBLISHED, Curve, curve, read_curve
from codec.evaluation.figures import Evaluated, Figures, means, sums_and_counts
from codec.evaluation.pictures import Pictures
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
    """

    pictures: Pictures
    ours: list[Evaluated]
    theirs: list[Evaluated]
    curves: list[Curve]
    shown: list[Shown]


def measure_all(
    checkpoints: Sequence[str],
    references: Sequence[str],
    pictures: Pictures,
    ranks: Ranks,
    *,
    fake_quant: bool,
    keep_pictures: bool,
) -> Comparison:
    """Measures checkpoints and references on all ranks; each rank codes its share of the pictures.

    Args:
        references: checkpoints, Pillow's formats, "published", or JSON files with a curve.
        fake_quant: False measures checkpoints of quantization-aware training in float.
        keep_pictures: keep some pictures and their reconstructions.

    Raises:
        InputError: a checkpoint or a reference cannot be read, or a codec's training has diverged.
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
    compared = len(codecs) + len(anchors) + len(formats)
    album = Album(spread(len(pictures.names), compared) if keep_pictures else ())

    ours = [evaluate_codec(name, codec, pictures, ranks, album) for name, codec in codecs.items()]
    theirs = {"reference": [evaluate_codec(name, codec, pictures, ranks, album) for name, codec in anchors.items()]}
    for name in formats:
        theirs[name] = [evaluate_pillow(name, quality, pictures, ranks, album) for quality in QUALITIES[name]]
    curves = [*_by_blocks(ours), *(_curve(*item) for item in theirs.items() if item[1]), *known]
    measured = [each for points in theirs.values() for each in points]
    return Comparison(pictures, ours, measured, curves, album.gather(ranks))


def _is_checkpoint(reference: str) -> bool:
    return reference not in QUALITIES and _curve_file(reference).suffix != ".json"


def _curve_file(reference: str) -> Path:
    return PUBLISHED if reference == "published" else Path(reference)


def evaluate_codec(name: str, codec: Codec, pictures: Pictures, ranks: Ranks, album: Album) -> Evaluated:
    """A codec's figures on all pictures, on every rank. Each rank codes its share and keeps some in the album.

    Raises:
        InputError: the codec's training has diverged.
    """
    files = FileCodec(codec.to(ranks.device), name)
    decoded = through_files(files, pictures.read(ranks.rank, ranks.world_size))
    evaluated = _evaluated(name, album.keep(name, name, decoded), pictures, ranks)
    codec.cpu()
    return replace(evaluated, blocks=codec.architecture.in_short())


def evaluate_pillow(name: str, quality: int, pictures: Pictures, ranks: Ranks, album: Album) -> Evaluated:
    """The same as `evaluate_codec` for one of Pillow's formats."""
    coded = through_pillow(name, quality, pictures.read(ranks.rank, ranks.world_size), ranks.device)
    point = f"{name} {quality}"
    return _evaluated(point, album.keep(name, point, coded), pictures, ranks)


def _evaluated(name: str, figures: Iterable[tuple[int, Figures]], pictures: Pictures, ranks: Ranks) -> Evaluated:
    share = len(range(ranks.rank, len(pictures.names), ranks.world_size))
    progress = tqdm(
        figures, desc=one_line(Path(name).name), total=share, unit=" pictures", leave=False, disable=ranks.rank != 0
    )
    rows = dict(ranks.gather(progress))
    assert rows.keys() == set(range(len(pictures.names))), "a picture was lost or counted twice"
    ordered = [rows[i] for i in range(len(rows))]
    if not all(math.isfinite(row.l1) for row in ordered):
        raise InputError(f"{name} gives values that are not finite; its training has diverged, use an earlier one")
    return Evaluated(name, ordered, means(sums_and_counts(ordered)))


def _by_blocks(ours: list[Evaluated]) -> list[Curve]:
    """One curve for each combination of blocks and precision: int8 and float codecs are not on one curve."""
    alike: dict[str, list[Evaluated]] = {}
    for each in ours:
        alike.setdefault(each.blocks, []).append(each)
    return [_curve(blocks if len(alike) > 1 else "npu-image-codec", points) for blocks, points in alike.items()]


def _curve(name: str, points: list[Evaluated]) -> Curve:
    return curve(name, [each.point for each in points if each.point])
