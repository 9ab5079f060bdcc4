"""Windows that cover a large picture and overlap, so that a transform sees one after the other. Needs no torch.

Lengths are counted in positions of y: one is 16 pixels. A position of a transform's output depends on `margins`
positions of its input before it and after it; a window gives the full picture's values where it has them on both sides.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Window = tuple[slice, slice]
Margins = tuple[int, int]
"""How many positions before and after its own a position of the output depends on, in rows and in columns."""

SIZE = (24, 32)
"""Rows and columns of a window: 384x512 pixels. An activation of 128 channels at half of that takes 25 MB, which the
allocator reuses; from 32 MB on it would ask the system for fresh pages each time, at twice the time."""

LARGEST_WHOLE = 4 * SIZE[0] * SIZE[1]
"""A picture of up to so many positions, 0.8 megapixels, is computed at once."""


@dataclass(frozen=True)
class Tile:
    """A window on y, in positions: rows and columns.

    Attributes:
        size, place: how far the transform looks, and from where.
        first, end: the positions that are taken from what it gives.
    """

    size: tuple[int, int]
    place: tuple[int, int]
    first: tuple[int, int]
    end: tuple[int, int]

    def seen(self, unit: int = 1) -> Window:
        """What the transform looks at; `unit` is 1 for y and 16 for pixels."""
        return _window(self.place, (place + size for place, size in zip(self.place, self.size, strict=True)), unit)

    def kept(self, unit: int = 1) -> Window:
        """Where its result goes."""
        return _window(self.first, self.end, unit)

    def used(self, unit: int = 1) -> Window:
        """Which of its result."""
        first, end = ([a - b for a, b in zip(each, self.place, strict=True)] for each in (self.first, self.end))
        return _window(first, end, unit)


def _window(first: Iterable[int], end: Iterable[int], unit: int) -> Window:
    rows, columns = (slice(a * unit, b * unit) for a, b in zip(first, end, strict=True))
    return rows, columns


def tiles(whole: Sequence[int], size: Sequence[int], margins: Margins) -> Iterator[Tile]:
    """Tiles of `size` that cover a y of `whole` rows and columns, each position once."""
    sides = (spans(length, side, margins) for length, side in zip(whole, size, strict=True))
    for row, column in product(*sides):
        yield Tile((size[0], size[1]), *zip(row, column, strict=True))


def spans(length: int, size: int, margins: Margins) -> list[tuple[int, int, int]]:
    """Tiles of a side: where each begins, and the first and the end of the positions that are taken from it.

    All tiles have the same size, and the last ends where the side does.

    Args:
        size: at least `least_size(margins)`, or the length.
    """
    if size >= length:
        return [(0, 0, length)]
    before, after = margins
    places = [*range(0, length - size, size - before - after), length - size]
    edges = [0, *(place + before for place in places[1:]), length]
    return list(zip(places, edges, edges[1:], strict=False))


def tile_size(whole: Sequence[int], margins: Margins) -> tuple[int, int]:
    """The tiles of a y of `whole` rows and columns: `SIZE`, or as large in another shape where y is narrow."""
    least = [max(side, 4 * sum(margins)) for side in SIZE]
    area = least[0] * least[1]
    rows, columns = (min(length, side) for length, side in zip(whole, least, strict=True))
    return min(whole[0], max(rows, area // columns)), min(whole[1], max(columns, area // rows))


def least_size(margins: Margins) -> int:
    """The least side of a tile that gives one position as the full picture does."""
    return sum(margins) + 1
