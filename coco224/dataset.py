"""Opens a split as rows: from a prepared dataset, or from photographs that are cropped when they are read."""

from collections.abc import Iterator
from pathlib import Path

from coco224.errors import DataError
from coco224.files import expanded
from coco224.making.manifest import MANIFEST
from coco224.photographs.decode import SUFFIXES
from coco224.reading.arrow import open_folder
from coco224.reading.on_the_fly import open_photographs
from coco224.reading.rows import Rows
from coco224.repository import is_repository
from coco224.walk import walk

__all__ = ["Rows", "files_of", "open_photographs", "open_rows", "open_split"]

_DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "state.json", MANIFEST}


def open_rows(coco_dir: str | Path, split: str, use_prepared: bool, streaming: bool = False) -> Rows | None:
    """`train` or `validation` of a prepared dataset (local or on the Hub) or of a COCO root; None if it has none.

    Args:
        streaming: fetch the rows of a dataset on the Hub when they are needed.

    Raises:
        DataError: the dataset does not exist or is damaged.
    """
    coco_dir = expanded(coco_dir)
    if streaming:
        if Path(coco_dir).exists():
            raise DataError(f"--streaming true, but --coco_dir {coco_dir} is a local folder: leave --streaming out")
        from coco224.reading.stream import stream_split

        return stream_split(str(coco_dir), split)
    return open_split(coco_dir, split) if use_prepared else open_photographs(coco_dir, split)


def open_split(coco_dir: str | Path, split: str) -> Rows | None:
    """A split of a prepared dataset: of a local folder or, if USER/NAME is not a path, of a dataset on the Hub.

    Raises:
        DataError: the dataset does not exist or is damaged.
    """
    if not Path(coco_dir).exists() and is_repository(str(coco_dir)):
        from coco224.reading.download import download_split

        return download_split(str(coco_dir), split)
    return open_folder(Path(coco_dir), split)


def files_of(place: str | None) -> Iterator[Path]:
    """The photographs and the files of datasets below a folder, or a file itself, for checks of a command's outputs.

    Raises:
        DataError: the folder cannot be read.
    """
    if place and Path(place).is_dir():
        for name, _ in walk(Path(place), SUFFIXES | {".arrow", ".json"}).files:
            if not name.endswith(".json") or Path(name).name in _DESCRIPTIONS:
                yield Path(place, name)
    elif place:
        yield Path(place)
