"""The hidden folder beside --out_dir in which a dataset grows, until one rename makes it appear whole."""

import contextlib
import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coco224.errors import DataError
from coco224.files import lock, make_folder, remove_empty, sync_folder, write_whole
from coco224.making.shards import Report, Shard


def checked_out_dir(out_dir: Path, overwrite: bool, coco_dir: Path | None) -> Path:
    """Where the dataset will stand, links resolved.

    Raises:
        DataError: something stands there that must not be replaced.
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
        if not (out / "dataset_dict.json").is_file():
            raise DataError(f"--overwrite true replaces a dataset, and --out_dir {out_dir} holds something else")
    return out


class Workspace:
    """The growing dataset of one run, kept by an interrupted one for the next. Entered, it is this process's alone.

    Args:
        out: where the dataset will appear.

    Raises:
        DataError: when it is entered, and another run is at work in it.
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
        """Lets the next run in. A folder in which nothing was begun is taken away."""
        with contextlib.suppress(OSError):
            held = self.root / "lock"
            if list(self.root.iterdir()) == [held]:
                held.unlink()
        remove_empty(self._made if self._made else [self.root])
        self._lock.close()

    def follow(self, plan: dict[str, Any]) -> None:
        """Says what makes the dataset's bytes; shards that were made under another plan are discarded by `begin`."""
        self._plan = json.dumps(plan, indent=1, sort_keys=True)

    def report(self, shard: Shard) -> Report | None:
        """What became of a shard that an earlier run finished under the same plan."""
        try:
            if not self._is_followed():
                return None
            found = Report.load(self._report_file(shard))
            whole = shard.path.stat().st_size == found.size
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # What could not be read is tried again: the disk or the file may have been repaired.
        return found if whole and not any(entry.unreadable for entry in found.skipped) else None

    def begin(self, splits: list[str]) -> None:
        """Clears what is no finished shard of this plan, such as what a killed run left half written."""
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
        """Makes the dataset appear at its place, whole, and takes the folder away.

        An older dataset there steps aside for the moment between two renames; a run that dies in that moment
        is completed by the same command.
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
            warnings.warn(f"{old}, the older dataset, cannot be removed: remove it yourself", stacklevel=2)

    def _is_followed(self) -> bool:
        """Whether an earlier run has left shards of the same plan."""
        return self._plan_file.is_file() and self._plan_file.read_bytes() == self._plan.encode()

    def _report_file(self, shard: Shard) -> Path:
        return self._reports / f"{shard.path.parent.name}-{shard.path.stem}.json"
