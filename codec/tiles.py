"""Overlapping tiles that cover a large picture, so that a transform computes one after the other. Needs no torch.

The unit of lengths is a position of y: 16 pixels. A position of the output depends on `margins` positions of the input
before and after it. Where a tile has these margins, its values are those of the full picture.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Window = tuple[slice, slice]
Margins = tuple[int, int]
"""In rows and in columns: how many input positions before and after its own an output position depends on."""

SIZE = (24, 32)
"""Rows and columns of a tile: 384x512 pixels. Half as high and wide, an activation of 128 channels takes 25 MB, which
the allocator reuses. From 32 MB on it would get new pages from the system every time, which doubles the time."""

LARGEST_WHOLE = 4 * SIZE[0] * SIZE[1]
"""A picture of at most so many positions (0.8 megapixels) is computed at once."""


@dataclass(frozen=True)
class Tile:
    """A tile of y; all attributes are rows and columns in positions of y.

    Attributes:
        size, place: size of the input and its first position.
        first, end: the part of the output that is kept.
    """

    size: tuple[int, int]
    place: tuple[int, int]
    first: tuple[int, int]
    end: tuple[int, int]

    def seen(self, unit: int = 1) -> Window:
        """The input of the transform; `unit` is 1 for y and 16 for pixels."""
        return _window(self.place, (place + size for place, size in zip(self.place, self.size, strict=True)), unit)

    def kept(self, unit: int = 1) -> Window:
        """Where the kept output belongs in the full picture."""
        return _window(self.first, self.end, unit)

    def used(self, unit: int = 1) -> Window:
        """The part of the output that is kept."""
        first, end = ([a - b for a, b in zip(each, self.place, strict=True)] for each in (self.first, self.end))
        return _window(first, end, unit)


def _window(first: Iterable[int], end: Iterable[int], unit: int) -> Window:
    rows, columns = (slice(a * unit, b * unit) for a, b in zip(first, end, strict=True))
    return rows, columns


def tiles(whole: Sequence[int], size: Sequence[int], margins: Margins) -> Iterator[Tile]:
    """Tiles of `size` whose kept parts cover a y of `whole` rows and columns exactly once."""
    sides = (spans(length, side, margins) for length, side in zip(whole, size, strict=True))
    for row, column in product(*sides):
        yield Tile((size[0], size[1]), *zip(row, column, strict=True))


def spans(length: int, size: int, margins: Margins) -> list[tuple[int, int, int]]:
    """Tiles along one side: the start of every tile, and the first and the end position that are kept of it.

    All tiles have the same size, and the last one ends at the end of the side.

    Args:
        size: at least `least_size(margins)`, or equal to the length.
    """
    if size >= length:
        return [(0, 0, length)]
    before, after = margins
    places = [*range(0, length - size, size - before - after), length - size]
    edges = [0, *(place + before for place in places[1:]), length]
    return list(zip(places, edges, edges[1:], strict=False))


def tile_size(whole: Sequence[int], margins: Margins) -> tuple[int, int]:
    """The tile size for a y of `whole` rows and columns: `SIZE`, or another shape of the same area if y is narrow."""
    least = [max(side, 4 * sum(margins)) for side in SIZE]
    area = least[0] * least[1]
    rows, columns = (min(length, side) for length, side in zip(whole, least, strict=True))
    return min(whole[0], max(rows, area // columns)), min(whole[1], max(columns, area // rows))


def least_size(margins: Margins) -> int:
    """The smallest side of a tile in which at least one position has the full picture's value."""
    return sum(margins) + 1
