"""The embedded photographs: six from the scikit-image wheel, so that a demo needs no download."""

from importlib.util import find_spec
from pathlib import Path

from coco224.errors import DataError
from coco224.photographs.folder import Source

SAMPLE = "sample"  # this --coco_dir means these photographs; write ./sample for a folder of that name

# Licences as in scikit-image's documentation (skimage.data).
LICENCES = {
    "astronaut.png": "NASA Great Images database: no known copyright restrictions, public domain",
    "chelsea.png": "CC0 by the photographer, Stefan van der Walt",
    "coffee.png": "CC0 by the photographer, Rachel Michetti; courtesy of Pikolo Espresso Bar",
    "hubble_deep_field.jpg": "NASA, may be freely used in the public domain",
    "retina.jpg": "Wikimedia Commons, CC0 1.0",
    "rocket.jpg": "SpaceX, released in the public domain",
}
VALIDATION = ("astronaut.png",)


def sample_splits(include_val: bool) -> dict[str, Source]:
    """Five photographs to train on and one to validate on.

    Raises:
        DataError: scikit-image is not installed, or its build does not contain the photographs.
    """
    # Only `find_spec`: importing skimage.data takes longer than preparing the six photographs.
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("--coco_dir sample takes scikit-image's photographs: pip install scikit-image")
    folder = Path(spec.submodule_search_locations[0], "data")
    missing = [name for name in LICENCES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"--coco_dir sample: {folder} lacks {', '.join(missing)}; install scikit-image from its wheel")
    splits = {"train": _source(folder, tuple(name for name in LICENCES if name not in VALIDATION))}
    if include_val:
        splits["validation"] = _source(folder, VALIDATION)
    return splits


def _source(folder: Path, names: tuple[str, ...]) -> Source:
    return Source(folder, names, tuple((folder / name).stat().st_size for name in names))
