"""A COCO root as it lies on disk: which folder is which split, and which photographs it holds."""

from dataclasses import dataclass
from pathlib import Path

from coco224.errors import DataError
from coco224.photographs.decode import SUFFIXES, list_photographs

FOLDERS = {"train": "train2017", "validation": "val2017"}


@dataclass(frozen=True)
class Source:
    """The photographs of one split: names relative to `folder`, in the dataset's order, and their bytes."""

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]


def coco_split(root: Path, split: str) -> Source | None:
    """The photographs of `train` or `validation` under a COCO root; None where it has no such folder.

    Raises:
        DataError: the root is no folder, or the split's folder holds no photograph.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"--coco_dir {root} {what}: give the folder that holds train2017/ and val2017/")
    folder = root / FOLDERS[split]
    if not folder.is_dir():
        return None
    found = list_photographs(folder)
    if not found:
        raise DataError(f"{folder} holds no photograph ({' '.join(sorted(SUFFIXES))}): give the COCO root itself")
    names, sizes = zip(*found, strict=True)
    return Source(folder, names, sizes)


def coco_splits(root: Path, include_val: bool) -> dict[str, Source]:
    """The splits of a COCO root by name: `train`, and `validation` where asked for.

    Raises:
        DataError: as `coco_split`, or a split is missing.
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
