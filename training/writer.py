"""Writes files in the background, so that no rank waits for the disk of the main process."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 4  # jobs at once, which hold their data in memory: a checkpoint, then pictures, curves and a checkpoint


class Writer:
    """Runs jobs that write files in one thread, in the order in which they were submitted.

    A kill leaves the files of the first jobs, as it would if training had waited for every job.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writer")
        self._under_way: deque[Future[Any]] = deque()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Submits a job; waits only if `MOST` jobs are not finished.

        Raises:
            Exception: the exception of an earlier job.
        """
        while self._under_way and (self._under_way[0].done() or len(self._under_way) >= MOST):
            self._under_way.popleft().result()
        future = self._thread.submit(job)
        self._under_way.append(future)
        return future

    def wait(self) -> None:
        """Returns when every job is done.

        Raises:
            Exception: the exception of a job.
        """
        while self._under_way:
            self._under_way.popleft().result()

    def close(self) -> None:
        """Ends the thread when every job is done; ignores their exceptions."""
        self._thread.shutdown()
