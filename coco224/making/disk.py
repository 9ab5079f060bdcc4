"""Checks, before hours of work, that the dataset will fit on the disk."""

import shutil
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from coco224.errors import DataError, counted, printable
from coco224.files import open_regular
from coco224.making.shards import Recipe, Shard
from coco224.photographs.decode import FORMATS

# The smallest size of an encoded crop, as a share of its raw bytes; measured means on COCO are 0.64 (png), 0.52 (webp)
# and 0.18 (jpeg). If it is too low, a full disk is only found later, during the run.
_LEAST_SHARE = {"raw": 1.0, "png": 0.4, "webp": 0.3, "jpeg": 0.08}
_READERS = 8  # threads that read headers


def check_room(out: Path, shards: Sequence[Shard], recipe: Recipe) -> None:
    """Compares the smallest possible size of the shards with the free space where `out` will be.

    Raises:
        DataError: the dataset will not fit.
    """
    files = [shard.folder / name for shard in shards for name in shard.names]
    crops = _tiles(files, recipe.size) if recipe.crop == "grid" else recipe.crops_per_image * len(files)
    needed = int(crops * recipe.size**2 * 3 * _LEAST_SHARE[recipe.encoding])
    folder = next(parent for parent in out.parents if parent.exists())
    disk = shutil.disk_usage(folder)
    free = disk.free
    if needed > free and disk.total:  # some network file systems report no size
        raise DataError(
            f"the disk of {folder} has {free / 1e9:.3f} GB free, and the dataset needs {needed / 1e9:.3f} GB at least: "
            f"make room, or give --encoding jpeg or a smaller --limit"
        )


def _tiles(files: Sequence[Path], size: int) -> int:
    """The number of rows that `grid` makes, from the files' headers; it is printed, since one file may give many."""

    def tiles_of(path: Path) -> int:
        try:
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                return len(range(0, image.width - size + 1, size)) * len(range(0, image.height - size + 1, size))
        except Exception:  # the run itself will report the file
            return 0

    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as readers:
        warnings.simplefilter("ignore")
        tiles = list(readers.map(tiles_of, files))
    if any(tiles):
        most = max(range(len(files)), key=tiles.__getitem__)
        rows, one = counted(sum(tiles), "row"), counted(tiles[most], "row")
        line = f"--crop grid makes {rows} of {counted(len(files), 'photograph')}, {one} of {files[most]}"
        print(printable(line), file=sys.stderr)
    return sum(tiles)
