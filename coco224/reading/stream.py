"""Rows of a dataset on the Hub that are fetched when needed: it takes no disk space, and training starts at once."""

import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from coco224.errors import DataError, counted
from coco224.reading.arrow import rows_of
from coco224.reading.download import manifest_of
from coco224.reading.parquet import check_groups
from coco224.reading.rows import Ints, Pixels, Rows
from coco224.repository import reasons

_POOL = 2048  # the order draws the next row from so many rows: 300 MB of raw crops
_AHEAD = 2  # blocks that are fetched before they are needed
_PAUSES = (1, 2, 4, 8, 15, 30, 60, 120, 300)  # seconds between the tries of a fetch


def stream_split(repo_id: str, split: str, revision: str | None = None) -> Rows | None:
    """`train` or `validation` of a dataset on the Hub; None if it has no such split.

    Raises:
        DataError: the dataset does not exist, or cannot be read.
    """
    from huggingface_hub import HfApi

    manifest = manifest_of(repo_id)
    if split not in manifest["splits"]:
        return None
    with reasons(f"--coco_dir {repo_id} cannot be read"):
        revision = revision or HfApi().dataset_info(repo_id).sha
        return StreamedRows(repo_id, split, str(revision), manifest)


class StreamedRows:
    """The `Rows` of Parquet files on the Hub. A block is a row group, which one request fetches.

    Rows that are read together must be in few blocks; `order` ensures that.
    """

    decodes = False  # in effect: another process would fetch every block a second time

    def __init__(self, repo_id: str, split: str, revision: str, manifest: dict[str, Any]) -> None:
        import pyarrow.parquet as pq
        from huggingface_hub import HfFileSystem

        self.size = int(manifest["options"]["size"])
        self.fingerprint = str(manifest["splits"][split]["fingerprint"])
        self._where = repo_id, split, revision
        self._hub = HfFileSystem()
        files = sorted(self._hub.glob(f"datasets/{repo_id}@{revision}/data/{split}-*.parquet"))
        self._files: dict[str, Any] = {}
        self._groups: list[tuple[str, int]] = []
        lengths = []
        for file in files:
            with self._hub.open(file) as parquet:
                self._files[file] = pq.ParquetFile(parquet).metadata
            check_groups(self._files[file], f"--coco_dir {repo_id}: {file}")
            for group in range(self._files[file].num_row_groups):
                self._groups.append((file, group))
                lengths.append(self._files[file].row_group(group).num_rows)
        self._starts = np.cumsum([0, *lengths])
        if len(self) != manifest["splits"][split]["rows"]:
            raise DataError(
                f"--coco_dir {repo_id}: {split} has {counted(len(self), 'row')}, not as many as its manifest says"
            )
        self._window = max(1, -(-_POOL * len(lengths) // len(self)))
        self._next = list(range(len(lengths)))
        self._fetched: OrderedDict[int, Future[Rows]] = OrderedDict()
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(_AHEAD, "hub")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[object, ...]:
        return stream_split, self._where

    def order(self, rng: np.random.Generator) -> Ints:
        """A permutation that mixes the rows of a block with those of a few other blocks, but not more."""
        blocks = rng.permutation(len(self._groups))
        begins = np.argsort(blocks)  # place of each block in the permutation
        of_row = np.repeat(begins, np.diff(self._starts))
        ordered: Ints = np.argsort(of_row + self._window * rng.random(len(self)), kind="stable")
        return ordered

    def follow(self, order: Ints) -> None:
        """Fetches blocks in the order in which they are needed first."""
        blocks, first = np.unique(np.searchsorted(self._starts, order, side="right") - 1, return_index=True)
        self._next = blocks[np.argsort(first)].tolist()

    def names(self, indices: Sequence[int] | Ints) -> list[str]:
        return [self._block(block).names([row])[0] for block, row in self._find(np.asarray(indices))]

    def expect(self, indices: Ints) -> None:
        pass

    def read(self, indices: Ints, top: Ints, left: Ints, size: int) -> Pixels:
        out = np.empty((len(indices), size, size, 3), np.uint8)
        for i, (block, row) in enumerate(self._find(indices)):
            out[i] = self._block(block).read(np.array([row]), top[i : i + 1], left[i : i + 1], size)[0]
        return out

    def _find(self, indices: Ints) -> list[tuple[int, int]]:
        """(block, row in it) of each row."""
        blocks = np.searchsorted(self._starts, indices, side="right") - 1
        return list(zip(blocks.tolist(), (indices - self._starts[blocks]).tolist(), strict=True))

    def _block(self, block: int) -> Rows:
        """A block, from memory or from the Hub; also starts to fetch the next blocks."""
        with self._lock:
            place = self._next.index(block)
            for wanted in self._next[place : place + 1 + _AHEAD]:
                if wanted not in self._fetched:
                    self._fetched[wanted] = self._threads.submit(self._fetch, wanted)
            self._fetched.move_to_end(block)
            while len(self._fetched) > self._window + 1 + 2 * _AHEAD:
                self._fetched.popitem(last=False)
            found = self._fetched[block]
        with reasons(f"the same command goes on from the last checkpoint: {self._groups[block][0]} cannot be read"):
            return found.result()

    def _fetch(self, block: int) -> Rows:
        """Fetches a block from the Hub; tries for some minutes. A block that is damaged is not tried again."""
        from httpx2 import HTTPError

        for pause in _PAUSES:
            try:
                return self._read(*self._groups[block])
            except (HTTPError, OSError) as error:
                warnings.warn(f"a block cannot be fetched from the Hub ({error}); next try in {pause} s", stacklevel=2)
                time.sleep(pause)
        return self._read(*self._groups[block])

    def _read(self, file: str, group: int) -> Rows:
        import pyarrow.parquet as pq
        from httpx2 import HTTPError

        try:
            with self._hub.open(file, cache_type="none") as parquet:
                reader = pq.ParquetFile(parquet, metadata=self._files[file])
                table = reader.read_row_group(group, columns=["image", "file_name"])
        except (HTTPError, ConnectionError, TimeoutError):
            raise
        except (pa.ArrowException, OSError) as error:
            # pyarrow's own are plain ones without a number
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise
            reason = " ".join(str(error).split())
            raise DataError(f"row group {group} of {file} is damaged ({reason}): upload the dataset again") from None
        rows = rows_of(Path(file), self._where[1], table, self.fingerprint)
        if rows.size != self.size:
            raise DataError(
                f"{file} has rows of {rows.size}x{rows.size}, not of {self.size}x{self.size} as its manifest"
            )
        return rows
