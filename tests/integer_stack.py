"""A payload read with Python's integers alone, as docs/rd.md describes it."""

import struct

from codec.bitstream.rows import Rows


class IntegerStack:
    """The stack of an ANS coder: a state of 64 bits above words of 32 bits."""

    def __init__(self, payload: bytes) -> None:
        self._words = list(struct.unpack(f"<{-(-len(payload) // 4)}I", payload + bytes(-len(payload) % 4)))
        self._state = 0
        self._refill()

    @property
    def is_empty(self) -> bool:
        """Whether everything was read."""
        return (self._state, self._words) == (0, [])

    def _refill(self) -> None:
        while self._state < 1 << 32 and self._words:
            self._state = self._state << 32 | self._words.pop()

    def _pop(self, cdf: list[int]) -> int:
        """The interval that the state's low 24 bits point at."""
        low = self._state & (2**24 - 1)
        interval = next(i for i in range(len(cdf) - 1) if low < cdf[i + 1])
        self._state = (self._state >> 24) * (cdf[interval + 1] - cdf[interval]) + low - cdf[interval]
        self._refill()
        return interval

    def group(self, rows: Rows, picked: list[int]) -> list[int]:
        """Symbols, each with the row that `picked` names; then those that fell into a last interval."""
        scaled = [[entry << 8 for entry in cdf[:n].tolist()] for cdf, n in zip(rows.cdfs, rows.lengths, strict=True)]
        nibble = [i << 20 for i in range(17)]
        found = [self._pop(scaled[row]) for row in picked]
        outside = [i for i, row in enumerate(picked) if found[i] == len(scaled[row]) - 2]
        lengths = [self._pop(nibble) for _ in outside]
        symbols = [interval + int(rows.offsets[row]) for interval, row in zip(found, picked, strict=True)]
        for i, length in zip(outside, lengths, strict=True):
            far = sum(self._pop(nibble) << 4 * digit for digit in range(length))
            first = int(rows.offsets[picked[i]])
            symbols[i] = first - (far + 1) // 2 if far % 2 else first + len(scaled[picked[i]]) - 2 + far // 2
        return symbols
