"""A set of whole numbers, a bit for each: made for dense ones, as ids and sequences are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

_CHUNK_BITS = 10
_CHUNK_MASK = (1 << _CHUNK_BITS - 3) - 1


class Bitmap:
    """Whole numbers ≥ 0, in any order; in chunks, so that one far from all others costs some 300
    bytes."""

    __slots__ = ("_chunks", "_order")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._order: list[int] = []

    def __contains__(self, number: int) -> bool:
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        return chunk is not None and bool(chunk[number >> 3 & _CHUNK_MASK] >> (number & 7) & 1)

    def add(self, number: int) -> bool:
        """Whether it is new."""
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        if chunk is None:
            chunk = self._chunks[number >> _CHUNK_BITS] = bytearray(_CHUNK_MASK + 1)
        at, bit = number >> 3 & _CHUNK_MASK, 1 << (number & 7)
        if chunk[at] & bit:
            return False
        chunk[at] |= bit
        return True

    def ends(self) -> tuple[int, int] | None:
        """The lowest and the highest; None if there is none."""
        if not self._chunks:
            return None
        low, high = min(self._chunks), max(self._chunks)
        return (
            (low << _CHUNK_BITS) + _lowest(self._bits(low)),
            (high << _CHUNK_BITS) + self._bits(high).bit_length() - 1,
        )

    def absent(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What is not there of a range, both its ends included: as such ranges, rising."""
        if len(self._order) != len(self._chunks):
            self._order = sorted(self._chunks)
        order = self._order
        for at in range(max(0, bisect_right(order, first >> _CHUNK_BITS) - 1), len(order)):
            base = order[at] << _CHUNK_BITS
            if base > last:
                break
            for low, high in _runs(self._bits(order[at])):
                if base + low > last:
                    break
                if first < base + low:
                    yield first, base + low - 1
                first = max(first, base + high + 1)
        if first <= last:
            yield first, last

    def _bits(self, place: int) -> int:
        return int.from_bytes(self._chunks[place], "little")


def _lowest(bits: int) -> int:
    """The place of the lowest one in a number that has any."""
    return (bits & -bits).bit_length() - 1


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """The runs of ones in a number: places of the lowest and the highest bit of each, rising."""
    at = 0
    while bits:
        zeros = _lowest(bits)
        bits >>= zeros
        ones = _lowest(~bits)
        bits >>= ones
        yield at + zeros, at + zeros + ones - 1
        at += zeros + ones
