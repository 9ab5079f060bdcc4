"""Makes batches of rows. Their order depends only on the seed, not on workers, ranks or interruptions."""

import functools
import itertools
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from coco224.errors import DataError, counted, first_line
from coco224.files import shared_memory
from coco224.ranks import ranks_here
from coco224.reading.rows import Flags, Ints, Pixels, Rows

K = TypeVar("K")
V = TypeVar("V")
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)

# These give the order and the crops different random numbers for the same seed.
_ORDER, _WINDOW = 0, 1

_BATCHES_PER_WORKER = 3  # in shared memory: two that were read ahead, and one in transfer
_TIMEOUT = 600  # seconds without a batch after which the workers have failed
_EXPECTED = 4  # how many micro-batches ahead the kernel learns which rows come
_DECODERS = 4  # threads that decode rows ahead of an evaluation; Pillow decodes without the interpreter's lock


class Batch(NamedTuple):
    """B pictures and their places in the data.

    images: uint8 [B, 3, S, S], channels_last in memory.
    rows: int64 [B], row numbers.
    places: int64 [B], places in the global batch (in the dataset, for evaluation).
    """

    images: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor


class TrainBatches(Dataset[Batch]):
    """Micro-batch k of a run for one rank: k = global_step * grad_accum + micro.

    The sample at place p of global step s is `order(seed, epoch)[(s % steps_per_epoch) * global_batch + p]`. Its
    window and flip are a function of (seed, epoch, row), independent of rank, world size and accumulation. The last
    incomplete batch of an epoch is dropped.

    Args:
        rows: the training rows.
        input_size: side of the random window of each row in pixels.
        hflip: mirror a window with probability 1/2.
        batch_size: rows in a micro-batch of one rank.

    Raises:
        DataError: the window is larger than a row, or the global batch is larger than the dataset.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        seed: int,
        input_size: int,
        hflip: bool,
        batch_size: int,
        grad_accum: int,
        rank: int,
        world_size: int,
    ) -> None:
        if input_size > rows.size:
            raise DataError(f"--input_size {input_size} is at most the row's size, which is {rows.size}: lower it")
        self.global_batch = batch_size * grad_accum * world_size
        self.steps_per_epoch = len(rows) // self.global_batch
        if not self.steps_per_epoch:
            raise DataError(
                f"a batch of {self.global_batch} is larger than the dataset of {counted(len(rows), 'row')}: "
                f"lower --batch_size or --grad_accum"
            )
        self._rows = rows
        self._seed = seed
        self._input_size = input_size
        self._hflip = hflip
        self._batch_size = batch_size
        self.grad_accum = grad_accum
        self._rank = rank
        self._world_size = world_size
        self.batch_bytes = batch_size * input_size**2 * 3
        self._drawn: dict[int, tuple[Ints, Ints, Ints, Flags]] = {}
        self._followed: int | None = None
        self._announced = 0  # micro-batches before this one were announced

    def __getitem__(self, k: int) -> Batch:
        epoch = k // (self.grad_accum * self.steps_per_epoch)
        if self._followed is None or epoch > self._followed:  # several readers are around the end of an epoch
            self._follow(epoch)
        self._announce(k)
        places, rows = self._places_and_rows(k)
        _, tops, lefts, mirrored = self._draw(epoch)
        pixels = self._rows.read(rows, tops[rows], lefts[rows], self._input_size)
        if self._hflip:
            # One by one: torch.flip is vectorized for HxWx3, ten times faster than a reversed numpy view.
            for place in np.flatnonzero(mirrored[rows]):
                picture = torch.from_numpy(pixels[place])
                picture.copy_(torch.flip(picture, (1,)))
        return _batch(pixels, rows, places)

    def follow(self, step: int) -> None:
        """Has rows fetched in the order of this step's epoch again, after other batches of them were read."""
        self._follow(step // self.steps_per_epoch)

    def _follow(self, epoch: int) -> None:
        self._rows.follow(self._draw(epoch)[0])
        self._followed = epoch

    def _announce(self, k: int) -> None:
        """Says which rows come in micro-batch k and in the next ones, also of the next epoch; each is said once."""
        of_epoch = self.grad_accum * self.steps_per_epoch
        end = min(k + 1 + _EXPECTED, (k // of_epoch + 2) * of_epoch)
        first = self._announced if k < self._announced <= end else k  # k: reading begins here
        for coming in range(first, end):
            self._rows.expect(self._places_and_rows(coming)[1])
        self._announced = end

    def _places_and_rows(self, k: int) -> tuple[Ints, Ints]:
        """The places of micro-batch k in the global batch, and the rows there."""
        step, micro = divmod(k, self.grad_accum)
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = (micro * self._world_size + self._rank) * self._batch_size
        places = np.arange(first, first + self._batch_size)
        return places, self._draw(epoch)[0][step_in_epoch * self.global_batch + places]

    def _draw(self, epoch: int) -> tuple[Ints, Ints, Ints, Flags]:
        """Order, corners and mirroring of a complete epoch. They are cached, so that a batch takes microseconds.

        Threads may read on both sides of an epoch's end, and announce rows of the next one: all threads draw the same.
        """
        drawn = self._drawn.get(epoch)
        if drawn is not None:
            return drawn
        n, room = len(self._rows), self._rows.size - self._input_size
        order = self._rows.order(np.random.default_rng([_ORDER, self._seed, epoch]))
        window = np.random.default_rng([_WINDOW, self._seed, epoch])
        top, left = window.integers(room + 1, size=(2, n), dtype=np.int32)
        drawn = order, top, left, window.integers(2, size=n, dtype=np.bool_)
        self._drawn = {other: kept for other, kept in self._drawn.items() if abs(other - epoch) == 1} | {epoch: drawn}
        return drawn


class EvalBatches(Dataset[Batch]):
    """Complete rows, each exactly once: rank r of w takes rows r, r + w, r + 2w, .. of the first `limit`."""

    def __init__(self, rows: Rows, batch_size: int, rank: int, world_size: int, limit: int | None = None) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._mine = range(rank, len(rows) if limit is None else min(limit, len(rows)), world_size)

    def __len__(self) -> int:
        return -(-len(self._mine) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches in order; the next ones are read while the caller uses one."""
        return read_ahead(self.__getitem__, range(len(self)), _DECODERS if self._rows.decodes else 1)

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        rows = np.asarray(self._mine[k * self._batch_size : (k + 1) * self._batch_size])
        corner = np.zeros(len(rows), np.int32)
        pixels = self._rows.read(rows, corner, corner, self._rows.size)
        return _batch(pixels, rows, rows)


class MicroBatches(Protocol[B_co]):
    """What a loader reads: `TrainBatches`, or what takes batches from it.

    Attributes:
        grad_accum: micro-batches per optimizer step.
        batch_bytes: size of the pictures of a micro-batch.
    """

    grad_accum: int
    batch_bytes: int

    def __getitem__(self, k: int) -> B_co: ...


def train_loader(
    batches: MicroBatches[B], start_step: int, stop_step: int, num_workers: int, pin_memory: bool
) -> Iterator[B]:
    """The micro-batches of global steps start_step .. stop_step - 1, read ahead also at the end of an epoch.

    Args:
        num_workers: processes that read. 0: a thread of this process, which is faster for rows that need no decoding,
            because no batch is sent between processes. If /dev/shm is too small for so many processes, threads read.
        pin_memory: put the batches into page-locked memory, from which a GPU copies them while it computes.
    """
    micro_batches = range(start_step * batches.grad_accum, stop_step * batches.grad_accum)
    workers = num_workers * ranks_here()  # of all processes of this machine
    needed, free = workers * _BATCHES_PER_WORKER * batches.batch_bytes, shared_memory() if num_workers else 0
    pin_memory = pin_memory and can_pin("batches", batches.batch_bytes)
    if num_workers and needed <= free:
        loader = DataLoader(
            _Reporting(batches),
            batch_size=None,  # an item of the dataset is already a batch
            sampler=micro_batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=_TIMEOUT,
        )
        return _received(iter(loader))
    if num_workers:
        warnings.warn(
            f"/dev/shm has {free / 1e6:.1f} MB free, {workers} worker processes need {needed / 1e6:.1f} MB: "
            "batches are read by threads; docker run --shm-size gives more",
            stacklevel=2,
        )

    def read(k: int) -> B:
        batch = batches[k]
        return tree_map_only(torch.Tensor, torch.Tensor.pin_memory, batch) if pin_memory else batch

    return read_ahead(read, micro_batches, max(1, num_workers))


@functools.cache
def can_pin(what: str, size: int) -> bool:
    """Whether so many bytes of page-locked memory can be had, which a container may limit; tries and warns once.

    Args:
        what: a word for what they would hold, for the warning.
    """
    try:
        torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        warnings.warn(
            f"{what} are not in page-locked memory, copies of them are slower: {first_line(error)}", stacklevel=3
        )
        return False
    return True


class _Reporting(Dataset[B | str]):
    """Batches, or the message of a DataError: for an exception a DataLoader would add the worker's traceback."""

    def __init__(self, batches: MicroBatches[B]) -> None:
        self._batches = batches

    def __getitem__(self, k: int) -> B | str:
        try:
            return self._batches[k]
        except DataError as error:
            return str(error)


def _received(loader: Iterator[B | str]) -> Iterator[B]:
    """The batches from the workers.

    Raises:
        DataError: a worker raised it, a worker was killed, or no batch came for minutes.
    """
    while True:
        try:
            batch = next(loader)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError) as error:  # the latter two where a batch was on its way
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            if threading.current_thread() is threading.main_thread():  # torch's handler would raise once more, anywhere
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            reason = " ".join(str(error).split())
            raise DataError(f"a worker process failed ({reason}): give --num_workers 0, or a smaller one") from error
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def read_ahead(read: Callable[[K], V], keys: Iterable[K], threads: int) -> Iterator[V]:
    """read(k) for every key in order; threads read the next `threads` keys in the background."""
    with ThreadPoolExecutor(threads, "reader") as readers:
        waiting = (readers.submit(read, k) for k in keys)
        ahead = deque(itertools.islice(waiting, threads))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(itertools.islice(waiting, 1))
            yield batch


def _batch(pixels: Pixels, rows: Ints, places: Ints) -> Batch:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Batch(images, torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(places.astype(np.int64)))
