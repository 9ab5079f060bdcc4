"""Writes the shards with several processes, and stops them quickly after a signal, a full disk or a bug."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any

import pyarrow as pa

from coco224.errors import DataError
from coco224.making.shards import Recipe, Report, Shard, Stopped, write_shard
from coco224.processes import die_with_parent, possible_processes

_POLL_SECONDS = 0.1


class StopSignals:
    """Inside this context, SIGTERM and SIGINT set a flag. A second SIGINT ends the process with status 130."""

    def __init__(self) -> None:
        self.stopping = False

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._on) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, _: FrameType | None) -> None:
        if self.stopping and number == signal.SIGINT:
            os._exit(130)
        self.stopping = True


def write_shards(
    shards: Sequence[Shard],
    recipe: Recipe,
    schema: pa.Schema,
    *,
    num_proc: int,
    signals: StopSignals,
    keep: Callable[[Shard, Report], None],
    progress: Callable[[int], None],
) -> None:
    """Writes every shard; the result does not depend on `num_proc`.

    Args:
        keep: called in this process for every finished shard.
        progress: called with the number of photographs begun so far.

    Raises:
        Stopped: a signal came.
        DataError: a worker was killed.
        OSError: the disk is full or cannot be written.
    """
    processes = possible_processes(min(num_proc, len(shards)))
    if processes <= 1:
        _write_here(shards, recipe, schema, signals, keep, progress)
        return
    # Not fork: this process has Arrow's threads, and a forked worker would not notice the death of its parent.
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(ctypes.c_bool, False)
    begun = context.RawArray(ctypes.c_long, len(shards))
    pool = ProcessPoolExecutor(processes, context, _start_worker, (recipe, schema, stop, begun))
    try:
        futures = {pool.submit(_write_there, number, shard): shard for number, shard in enumerate(shards)}
        waiting: set[Future[Report]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            progress(sum(begun))
            if signals.stopping:
                raise Stopped
            for future in done:
                keep(futures[future], future.result())
    except BrokenProcessPool:
        time.sleep(_POLL_SECONDS)  # a signal to the process group may reach a worker first
        if signals.stopping:
            raise Stopped from None
        raise DataError(
            "a worker process was killed, probably because memory ran out: give a smaller --num_proc; "
            "the finished part is kept"
        ) from None
    finally:
        stop.value = True
        pool.shutdown(cancel_futures=True)


def _write_here(
    shards: Sequence[Shard],
    recipe: Recipe,
    schema: pa.Schema,
    signals: StopSignals,
    keep: Callable[[Shard, Report], None],
    progress: Callable[[int], None],
) -> None:
    begun = 0

    def tick() -> None:
        nonlocal begun
        if signals.stopping:
            raise Stopped
        begun += 1
        progress(begun)

    for shard in shards:
        keep(shard, write_shard(shard, recipe, schema, tick))


# The arguments of a worker process.
_worker: dict[str, Any] = {}


def _start_worker(recipe: Recipe, schema: pa.Schema, stop: Any, begun: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops the workers
    die_with_parent()
    _worker.update(recipe=recipe, schema=schema, stop=stop, begun=begun)


def _write_there(number: int, shard: Shard) -> Report:
    def tick() -> None:
        if _worker["stop"].value:
            raise Stopped
        _worker["begun"][number] += 1

    return write_shard(shard, _worker["recipe"], _worker["schema"], tick)
