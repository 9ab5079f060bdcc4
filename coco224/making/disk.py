"""Whether the disk will hold the dataset, asked before hours of work and not after them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from coco224.errors import DataError
from coco224.making.shards import Recipe, Shard
from coco224.photographs.crops import boxes

# The least that a crop of a photograph takes, as a share of its raw bytes; measured means on COCO are 0.64 (png),
# 0.52 (webp) and 0.18 (jpeg). A guess too low only moves the error into the run.
_LEAST_SHARE = {"raw": 1.0, "png": 0.4, "webp": 0.3, "jpeg": 0.08}
_LOOKED_AT = 64


def check_room(out: Path, shards: Sequence[Shard], recipe: Recipe) -> None:
    """Compares what the shards will take at least with what is free where `out` will stand.

    Raises:
        DataError: it will not fit.
    """
    files = [shard.folder / name for shard in shards for name in shard.names]
    crops = _crops_per_file(files, recipe) * len(files)
    needed = int(crops * recipe.size**2 * 3 * _LEAST_SHARE[recipe.encoding])
    folder = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the disk of {folder} has {free / 1e9:.3f} GB free, the dataset takes {needed / 1e9:.3f} GB at least: "
            f"make room, or give --encoding jpeg or a smaller --limit"
        )


def _crops_per_file(files: Sequence[Path], recipe: Recipe) -> float:
    """For `grid` from the headers of a few files spread over all, exact otherwise."""
    if recipe.crop != "grid":
        return recipe.crops_per_image
    tiles = []
    for path in files[:: max(1, len(files) // _LOOKED_AT)]:
        try:
            with Image.open(path) as image:
                tiles.append(len(boxes("grid", *image.size, recipe.size, seed=0, index=0, count=1)))
        except (OSError, SyntaxError, Image.DecompressionBombError):
            continue  # the run itself will name it
    return sum(tiles) / max(1, len(tiles))
