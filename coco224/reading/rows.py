"""The interface of rows, the same for all sources of data."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class Rows(Protocol):
    """Square RGB pictures by number. They can be pickled, and forked to a loader's workers.

    Attributes:
        size: side of every row in pixels.
        fingerprint: identifies the data: equal for equal pixels in equal order.
        decodes: whether a row is decoded when it is read. If not, a read takes microseconds, and worker processes
            would only add a copy between processes.
    """

    size: int
    fingerprint: str
    decodes: bool

    def __len__(self) -> int: ...

    def order(self, rng: np.random.Generator) -> Ints:
        """The order of an epoch: a permutation of the row numbers that depends only on the generator's state."""
        ...

    def follow(self, order: Ints) -> None:
        """Says that the rows will be read in this order: what fetches rows fetches the next ones in it."""
        ...

    def names(self, indices: Sequence[int] | Ints) -> list[str]:
        """The source files of rows, for reports."""
        ...

    def expect(self, indices: Ints) -> None:
        """Says that these rows will be read soon; what maps files may let the kernel read them from the disk."""
        ...

    def read(self, indices: Ints, top: Ints, left: Ints, size: int) -> Pixels:
        """One size x size window of each of B rows.

        Args:
            indices: [B] row numbers, in any order, repeated or not.
            top, left: [B] where each window starts, in pixels.

        Returns:
            [B, size, size, 3].

        Raises:
            DataError: a row cannot be decoded.
        """
        ...
