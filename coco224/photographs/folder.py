"""The layout of a COCO root: the folder of each split, and its photographs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coco224.errors import DataError
from coco224.photographs.decode import SUFFIXES
from coco224.walk import left_out_in_words, walk

FOLDERS = {"train": "train2017", "validation": "val2017"}


@dataclass(frozen=True)
class Source:
    """The photographs of one split.

    Attributes:
        names: paths relative to `folder`, in the dataset's order.
        sizes: sizes in bytes.
        left_out: number of other files by reason, as `walk` counts them.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def coco_split(root: Path, split: str) -> Source | None:
    """The photographs of `train` or `validation` under a COCO root; None if it has no such folder.

    Raises:
        DataError: the root is not a folder, or the split's folder contains no photograph.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"--coco_dir {root} {what}: give the folder that holds train2017/ and val2017/")
    folder = root / FOLDERS[split]
    if not folder.is_dir():
        return None
    found = walk(folder, SUFFIXES)
    if not found.files:
        others = f" ({left_out_in_words(found.left_out)})" if found.left_out else ""
        wanted = " ".join(sorted(SUFFIXES))
        raise DataError(f"{folder} holds no photograph ({wanted}){others}: give the COCO root itself")
    names, sizes = zip(*found.files, strict=True)
    return Source(folder, names, sizes, dict(sorted(found.left_out.items())))


def coco_splits(root: Path, include_val: bool) -> dict[str, Source]:
    """The splits of a COCO root by name: `train` and, with `include_val`, `validation`.

    Raises:
        DataError: as in `coco_split`, or a split is missing.
    """
    sources = {"train": coco_split(root, "train")}
    if include_val:
        sources["validation"] = coco_split(root, "validation")
    whole = {split: source for split, source in sources.items() if source is not None}
    if "train" not in whole:
        raise DataError(f"--coco_dir {root} has no train2017/: give the folder that holds train2017/ and val2017/")
    if len(whole) < len(sources):
        raise DataError(f"--coco_dir {root} has no val2017/: add it, or give --include_val false")
    return whole
