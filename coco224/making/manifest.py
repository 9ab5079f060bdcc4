"""What stands beside the Arrow files: how `datasets` knows them, and where each row and each gap comes from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features as pillow_features

from coco224.making.shards import Report
from coco224.making.workspace import write_durably
from coco224.photographs import resize
from coco224.photographs.folder import Source

MANIFEST = "manifest.json"


def versions() -> dict[str, str]:
    """The packages and libraries that decide a dataset's bytes."""
    resizer = ["cykooz-resizer"] if resize.cykooz_resizer else []  # else it is Pillow
    packages = {package: version(package) for package in ("datasets", "numpy", "pillow", "pyarrow", *resizer)}
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
    write_durably(folder / "state.json", json.dumps(state, indent=1))


def fingerprint(part: Sequence[Report]) -> str:
    """A function of the bytes of a split's Arrow files."""
    return hashlib.sha256("".join(report.sha256 for report in part).encode()).hexdigest()[:16]


def summary(source: Source, part: Sequence[Report]) -> dict[str, Any]:
    """A split's part of the manifest: how many files were read, and every one that was skipped and why."""
    skipped = [entry for report in part for entry in report.skipped]
    return {
        "folder": source.folder.name,
        "files": len(source.names),
        "rows": sum(report.rows for report in part),
        "fingerprint": fingerprint(part),
        "unreadable": sum(entry.unreadable for entry in skipped),
        "skipped": [asdict(entry) for entry in skipped],
    }
