"""The hidden folder beside --out_dir in which a dataset grows, until one rename makes it appear whole."""

import fcntl
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coco224.errors import DataError
from coco224.files import sync_folder, write_whole
from coco224.shards import Report, Shard


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
    """The growing dataset of one run, kept by an interrupted one for the next.

    Args:
        out: where the dataset will appear.
        plan: what makes the dataset's bytes; shards that were made under another plan are discarded.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self._out = out
        self._plan = json.dumps(plan, indent=1, sort_keys=True)
        self.root = out.parent / f".{out.name}.partial"
        self.dataset = self.root / "dataset"
        self._reports = self.root / "reports"

    def report(self, shard: Shard) -> Report | None:
        """What became of a shard that an earlier run finished under the same plan."""
        plan, report = self.root / "plan.json", self._report_file(shard)
        if not (plan.is_file() and plan.read_text() == self._plan and report.is_file() and shard.path.is_file()):
            return None
        found = Report.load(report)
        # What could not be read is tried again: the disk or the file may have been repaired.
        if shard.path.stat().st_size != found.size or any(entry.unreadable for entry in found.skipped):
            return None
        return found

    def begin(self, splits: list[str]) -> None:
        """Takes the folder for this process and clears what is no finished shard of this plan.

        Raises:
            DataError: another run is at work in it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing {self._out} at this moment: wait for it or stop it") from None
        plan = self.root / "plan.json"
        if not (plan.is_file() and plan.read_text() == self._plan):
            shutil.rmtree(self.dataset, ignore_errors=True)
            shutil.rmtree(self._reports, ignore_errors=True)
        for split in splits:
            (self.dataset / split).mkdir(parents=True, exist_ok=True)
        self._reports.mkdir(exist_ok=True)
        for torn in self.dataset.glob("*/*.tmp*"):
            torn.unlink()
        write_whole(plan, self._plan)

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
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.root)

    def _report_file(self, shard: Shard) -> Path:
        return self._reports / f"{shard.path.parent.name}-{shard.path.stem}.json"
