"""The files beside the Arrow files: the metadata for `datasets`, and the manifest with sources and skipped files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features as pillow_features

from coco224.errors import DataError
from coco224.files import read_json, write_whole
from coco224.making.shards import Report
from coco224.photographs import resize
from coco224.photographs.folder import Source

MANIFEST = "manifest.json"
_MOST_BYTES = 2**25
"""Largest manifest in bytes: it has an entry of some 100 bytes for every skipped file, and COCO has 118,287."""
_LARGEST_SIZE = 8192


def read_manifest(path: Path) -> Any:
    """The value of a manifest, not checked; raises as `read_json`."""
    return read_json(path, _MOST_BYTES)


def checked_manifest(path: Path, where: str) -> dict[str, Any]:
    """Reads a manifest that may come from a stranger, and checks types and ranges of the entries that are used.

    Raises:
        DataError: the manifest is damaged.
    """
    try:
        manifest: dict[str, Any] = read_manifest(path)
        size, splits = manifest["options"]["size"], manifest["splits"]
        if type(size) is not int or not 0 < size <= _LARGEST_SIZE:
            raise ValueError(f"size {size!r:.40}")
        for name, split in splits.items():
            if type(split["rows"]) is not int or split["rows"] < 1 or not isinstance(split["fingerprint"], str):
                raise ValueError(f"rows or fingerprint of {name!r:.40}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(
            f"{where}: its {MANIFEST} is damaged ({reason}): upload it again with python -m coco224.prepare"
        ) from None
    return manifest


def versions() -> dict[str, str]:
    """Versions of the packages and libraries that affect a dataset's bytes."""
    names = ("datasets", "numpy", "pillow", "pyarrow", *resize.packages())
    packages = {package: version(package) for package in names}
    return packages | {name: str(pillow_features.version(name)) for name in ("libjpeg_turbo", "webp", "zlib")}


def describe_split(folder: Path, features: Any, part: Sequence[Report]) -> None:
    """Writes the two files that make a folder of Arrow files a split for `datasets.load_from_disk`."""
    from datasets import DatasetInfo  # a second of imports that --help does not need

    DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": path.name} for path in sorted(folder.glob("*.arrow"))],
        "_fingerprint": fingerprint(part),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    write_whole(folder / "state.json", json.dumps(state, indent=1))


def fingerprint(part: Sequence[Report]) -> str:
    """A checksum of a split's Arrow files."""
    return hashlib.sha256("".join(report.sha256 for report in part).encode()).hexdigest()[:16]


def summary(source: Source, part: Sequence[Report]) -> dict[str, Any]:
    """A split's part of the manifest: the number of files, and all skipped files with the reason."""
    skipped = [entry for report in part for entry in report.skipped]
    return {
        "folder": source.folder.name,
        "files": len(source.names),
        "rows": sum(report.rows for report in part),
        "fingerprint": fingerprint(part),
        "unreadable": sum(entry.unreadable for entry in skipped),
        "left_out": dict(source.left_out),
        "skipped": [asdict(entry) for entry in skipped],
    }
