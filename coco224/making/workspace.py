"""The hidden folder beside --out_dir in which a dataset is made; a rename publishes the complete dataset."""

import contextlib
import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coco224.errors import DataError
from coco224.files import lock, make_folder, remove_empty, sync_folder, write_whole
from coco224.making.manifest import MANIFEST, read_manifest
from coco224.making.shards import Report, Shard


def checked_out_dir(out_dir: Path, overwrite: bool, coco_dir: Path | None) -> Path:
    """The path of the dataset, with links resolved.

    Raises:
        DataError: there is something that must not be replaced.
    """
    out = out_dir.resolve()
    if out.exists() and not out.is_dir():
        raise DataError(f"--out_dir {out_dir} is a file: name a folder")
    if out.is_mount():
        raise DataError(f"--out_dir {out_dir} is a mount point, which cannot be renamed: name a folder inside it")
    if coco_dir is not None and coco_dir.resolve().is_relative_to(out):
        raise DataError(f"--out_dir {out_dir} holds the photographs of --coco_dir: name another folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise DataError(f"--out_dir {out_dir} is not empty: name another folder, or give --overwrite true")
        if not _is_ours(out):
            raise DataError(f"--overwrite true replaces a dataset, and --out_dir {out_dir} holds something else")
    return out


def _is_ours(folder: Path) -> bool:
    """Whether this program made the dataset in the folder, and nothing else is there."""
    try:
        splits = set(read_manifest(folder / MANIFEST)["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {path.name for path in folder.iterdir()} <= splits | {MANIFEST, "dataset_dict.json", ".cache"}


class Workspace:
    """The unfinished dataset of a run; after an interruption the next run continues it. Entering it takes a lock.

    Args:
        out: the path of the finished dataset.

    Raises:
        DataError: on entering, if another run works in it.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.root = out.parent / f".{out.name}.partial"
        self.dataset = self.root / "dataset"
        self._reports = self.root / "reports"
        self._plan_file = self.root / "plan.json"
        self._plan = ""

    def __enter__(self) -> "Workspace":
        self._made = make_folder(self.root)
        try:
            self._lock = lock(
                self.root / "lock", f"another run is writing {self._out} at this moment: wait for it or stop it"
            )
        except BaseException:
            remove_empty(self._made)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the lock. Removes the folder if nothing was begun in it."""
        with contextlib.suppress(OSError):
            held = self.root / "lock"
            if list(self.root.iterdir()) == [held]:
                held.unlink()
        remove_empty(self._made if self._made else [self.root])
        self._lock.close()

    def follow(self, plan: dict[str, Any]) -> None:
        """Sets the plan, on which the dataset's bytes depend; `begin` discards shards of another plan."""
        self._plan = json.dumps(plan, indent=1, sort_keys=True)

    def report(self, shard: Shard) -> Report | None:
        """The report of a shard that an earlier run with the same plan finished; None if it did not."""
        try:
            if not self._is_followed():
                return None
            found = Report.load(self._report_file(shard))
            whole = shard.path.stat().st_size == found.size
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # Unreadable files are tried again: the disk or the file may have been repaired.
        return found if whole and not any(entry.unreadable for entry in found.skipped) else None

    def begin(self, splits: list[str]) -> None:
        """Removes everything except finished shards of this plan, such as incomplete files of a killed run."""
        if not self._is_followed():
            shutil.rmtree(self.dataset, ignore_errors=True)
            shutil.rmtree(self._reports, ignore_errors=True)
        for split in splits:
            (self.dataset / split).mkdir(parents=True, exist_ok=True)
        self._reports.mkdir(exist_ok=True)
        for torn in (*self.dataset.glob("*/*.tmp*"), *self.root.rglob(".*.partial")):
            torn.unlink(missing_ok=True)
        write_whole(self._plan_file, self._plan)

    def keep(self, shard: Shard, report: Report) -> None:
        """Marks a shard as finished."""
        write_whole(self._report_file(shard), json.dumps(asdict(report)))

    def publish(self) -> None:
        """Moves the complete dataset to its path, and removes the folder.

        An older dataset is moved away first. If the run dies between the two renames, the same command completes it.
        """
        for folder in (*self.dataset.iterdir(), self.dataset):
            if folder.is_dir():
                sync_folder(folder)
        old = self._out.parent / f".{self._out.name}.replaced"
        if self._out.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._out.rename(old)
        self.dataset.rename(self._out)
        sync_folder(self._out.parent)
        for left in (old, self.root):
            shutil.rmtree(left, ignore_errors=True)
        if old.exists():
            warnings.warn(f"the older dataset {old} cannot be removed: remove it yourself", stacklevel=2)

    def _is_followed(self) -> bool:
        """Whether an earlier run left shards of the same plan."""
        return self._plan_file.is_file() and self._plan_file.read_bytes() == self._plan.encode()

    def _report_file(self, shard: Shard) -> Path:
        return self._reports / f"{shard.path.parent.name}-{shard.path.stem}.json"
