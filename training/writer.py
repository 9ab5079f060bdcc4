"""Files written in the background, so that no rank waits for the disk of one."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 4  # jobs under way, which hold what they write in memory: a checkpoint, then pictures, curves and a checkpoint


class Writer:
    """Runs jobs that write files in a thread of its own, one after the other in the order that they came in.

    A kill leaves the files of the first jobs, just as it would if each had been waited for.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writer")
        self._under_way: deque[Future[Any]] = deque()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Hands over a job; waits only where `MOST` are under way.

        Raises:
            Exception: what an earlier job raised.
        """
        while self._under_way and (self._under_way[0].done() or len(self._under_way) >= MOST):
            self._under_way.popleft().result()
        future = self._thread.submit(job)
        self._under_way.append(future)
        return future

    def wait(self) -> None:
        """Returns when every job is done.

        Raises:
            Exception: what a job raised.
        """
        while self._under_way:
            self._under_way.popleft().result()

    def close(self) -> None:
        """Ends the thread when every job is done, without a word of what they raised."""
        self._thread.shutdown()
