"""Finds the trades that stand at another place in B's sequence than in A's.

How many is told by the longest sequence of common trades that both sides agree on: all others
must be moved. Where the two agree at once, and that is nearly everywhere, a trade is behind all
before it and before all behind it on both sides; only what lies between such trades is kept in
memory, and compared.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from feedmono.compare.spill import Row, Spill

MAX_BUCKETS = 256
_BUCKET_ROWS = 40_000
_SYMBOL, _A, _B, _ID = range(4)
_NEVER = 2**63

MAX_TRADES = 2**31 - 1
"""Places are kept in four bytes: eight would be twice the memory."""


class Moved(NamedTuple):
    """A trade that must be moved."""

    trade_id: str
    position: int
    """In A."""
    places: int
    """How far it comes behind its place in A, among the trades around it; below 0: before."""


def buckets(trades: int) -> int:
    """How many buckets a spill for that many trades of A should have."""
    return min(max(trades // _BUCKET_ROWS, 1), MAX_BUCKETS)


class Orders:
    """Takes common trades in any order, then tells which are out of order."""

    def __init__(self, rows: Spill, trades: int, symbols: int, unordered: set[int]) -> None:
        """:param rows: empty.
        :param trades: how many A has.
        :param symbols: how many there are.
        :param unordered: symbols whose sequence one of the sides does not tell.
        """
        self._rows = rows
        self._size = trades // rows.buckets + 1
        self._unordered = unordered
        # The first position in B of each symbol, by bucket of positions in A.
        self._firsts = [array("Q", [_NEVER]) * symbols for _ in range(rows.buckets)]
        self.counts: dict[int, int] = defaultdict(int)
        """Trades out of order, by symbol."""

    def add(self, symbol: int, a: int, b: int, trade_id: int | str) -> None:
        """A trade that both have, by its positions in both.

        :raises SpillFull: there is no more room on the disk.
        """
        if symbol in self._unordered:
            return
        bucket = a // self._size
        self._rows.add(bucket, (symbol, a, b, trade_id))
        firsts = self._firsts[bucket]
        firsts[symbol] = min(firsts[symbol], b)

    def run(self, max_named: int, advance: Callable[[int], None]) -> dict[int, list[Moved]]:
        """Counts the trades that are out of order, and gives the first ones by symbol."""
        self._lower_firsts()
        open_now: dict[int, _Stretch] = defaultdict(_Stretch)
        named: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for bucket in range(self._rows.buckets):
            rows = sorted(self._rows.rows(bucket))
            for symbol, own in groupby(rows, key=itemgetter(_SYMBOL)):
                for closed in _closed(open_now[symbol], list(own), self._behind(bucket, symbol)):
                    self._judge(symbol, closed, named[symbol], max_named)
            advance(1)
        return self._with_ids(named)

    def _lower_firsts(self) -> None:
        """Makes of each bucket's first positions those of it and all behind it."""
        for bucket in range(self._rows.buckets - 2, -1, -1):
            mine, behind = self._firsts[bucket], self._firsts[bucket + 1]
            self._firsts[bucket] = array("Q", map(min, mine, behind))

    def _behind(self, bucket: int, symbol: int) -> int:
        """The first position in B of the trades that come in later buckets."""
        later = bucket + 1
        return self._firsts[later][symbol] if later < self._rows.buckets else _NEVER

    def _judge(
        self, symbol: int, stretch: _Stretch, named: list[tuple[int, int]], max_named: int
    ) -> None:
        for index in misplaced(stretch.b):
            self.counts[symbol] += 1
            if len(named) < max_named:
                place = stretch.b[index]
                named.append((stretch.a[index], sum(b < place for b in stretch.b) - index))

    def _with_ids(self, named: dict[int, list[tuple[int, int]]]) -> dict[int, list[Moved]]:
        wanted = {a for moves in named.values() for a, _ in moves}
        ids: dict[int, str] = {}
        for bucket in sorted({a // self._size for a in wanted}):
            ids |= {row[_A]: str(row[_ID]) for row in self._rows.rows(bucket) if row[_A] in wanted}
        return {
            symbol: [Moved(ids[a], a, places) for a, places in moves]
            for symbol, moves in named.items()
        }


def _positions() -> array[int]:
    return array("I")


@dataclass(slots=True)
class _Stretch:
    """Trades of one symbol, in A's order, that the two sides may not agree on."""

    a: array[int] = field(default_factory=_positions)
    b: array[int] = field(default_factory=_positions)
    max_b: int = -1


def _closed(stretch: _Stretch, rows: list[Row], behind: int) -> Iterator[_Stretch]:
    """Takes the rows, which are in A's order, into the open stretch; gives those that are closed
    and longer than one trade.

    :param behind: the first position in B of all later trades.
    """
    suffix = array("Q", bytes(8 * len(rows)))
    for index in range(len(rows) - 1, -1, -1):
        suffix[index] = behind
        behind = min(behind, rows[index][_B])
    for row, first_behind in zip(rows, suffix, strict=True):
        place = row[_B]
        stretch.a.append(row[_A])
        stretch.b.append(place)
        stretch.max_b = max(stretch.max_b, place)
        if stretch.max_b < first_behind:
            if len(stretch.b) > 1:
                yield stretch
            stretch.a, stretch.b = _positions(), _positions()


def misplaced(places: array[int]) -> Iterator[int]:
    """The indices of as few elements as possible without which the others rise."""
    tails = _positions()  # of the best sequence of each length, the index of its last element
    values = _positions()  # and that element
    before = array("i", bytes(4 * len(places)))
    for index, place in enumerate(places):
        length = bisect_left(values, place)
        before[index] = tails[length - 1] if length else -1
        if length == len(tails):
            tails.append(index)
            values.append(place)
        else:
            tails[length], values[length] = index, place
    kept = bytearray(len(places))
    index = tails[-1] if tails else -1
    while index >= 0:
        kept[index] = 1
        index = before[index]
    yield from (index for index in range(len(places)) if not kept[index])
