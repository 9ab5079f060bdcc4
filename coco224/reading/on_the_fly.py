"""The rows of a COCO root without preparation: a photograph is decoded and cropped every time it is read."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coco224.errors import DataError, printable
from coco224.photographs.crops import boxes, cut, shortest_decoded
from coco224.photographs.decode import BadPhotograph, read_photograph
from coco224.photographs.folder import FOLDERS, Source, coco_split
from coco224.reading.rows import Ints, Pixels, Rows
from coco224.walk import say_left_out

_CROP = "resize_center"


def open_photographs(coco_root: str | Path, split: str, size: int = 224) -> Rows | None:
    """`train` or `validation` of a COCO root as rows of size x size; None if it has no val2017.

    The crops are those of `coco224.prepare` with its default options. The next readable photograph replaces one that
    cannot be read; a warning names it once per process.

    Raises:
        DataError: the folder does not exist or contains no photograph.
    """
    root = Path(coco_root)
    source = coco_split(root, split)
    if source is None and split == "train":
        raise DataError(f"--coco_dir {root} has no {FOLDERS[split]}/: with --use_prepared false, give a COCO root")
    if source is None:
        return None
    say_left_out(source.folder, source.left_out)
    return PhotographRows(source, size)


class PhotographRows:
    """The `Rows` of a folder of photographs."""

    decodes = True

    def __init__(self, source: Source, size: int) -> None:
        self.size = size
        self.fingerprint = hashlib.sha256(repr((source.names, source.sizes, _CROP, size)).encode()).hexdigest()[:16]
        self._source = source
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self._source.names)

    def order(self, rng: np.random.Generator) -> Ints:
        return rng.permutation(len(self))

    def names(self, indices: Sequence[int] | Ints) -> list[str]:
        return [self._source.names[int(index)] for index in indices]

    def follow(self, order: Ints) -> None:
        pass

    def expect(self, indices: Ints) -> None:
        pass

    def read(self, indices: Ints, top: Ints, left: Ints, size: int) -> Pixels:
        out = np.empty((len(indices), size, size, 3), np.uint8)
        windows = zip(out, indices.tolist(), top.tolist(), left.tolist(), strict=True)
        for window, index, y, x in windows:
            window[:] = self._readable(index)[y : y + size, x : x + size]
        return out

    def _readable(self, index: int) -> Pixels:
        """The picture of a row, or of the next readable row."""
        for candidate in (*range(index, len(self)), *range(index)):
            if candidate in self._bad:
                continue
            try:
                return self._crop(candidate)
            except BadPhotograph as error:
                self._bad.add(candidate)
                name = self._source.names[candidate]
                warnings.warn(printable(f"{name} cannot be read ({error}): the next one replaces it"), stacklevel=2)
        raise DataError(f"none of the {len(self)} photographs of {self._source.folder} can be read")

    def _crop(self, index: int) -> Pixels:
        path = self._source.folder / self._source.names[index]
        photograph = read_photograph(path, shortest_decoded(_CROP, self.size))
        (box,) = boxes(_CROP, photograph.width, photograph.height, self.size, seed=0, index=index, count=1)
        return np.asarray(cut(photograph, box, self.size))
