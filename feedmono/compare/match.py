"""Matches the trades of two sides, bucket by bucket.

A trade is its exchange, symbol and id. The two runs need not have begun and ended at the same
moment: what only one side has counts as missing only where the other was at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from feedmono.compare.order import Orders
from feedmono.compare.result import (
    DIFFERENT,
    DOUBLED_A,
    DOUBLED_B,
    MISSING_A,
    MISSING_B,
    Example,
    Found,
    SymbolResult,
    Values,
)
from feedmono.compare.side import (
    BUCKETS,
    ID,
    POSITION,
    PRICE,
    QUANTITY,
    SEEN,
    SIDE,
    SYMBOL,
    TIME,
    Side,
    Span,
)
from feedmono.compare.spill import Row, Spill

_NS_PER_US = 1000
_Key = tuple[int, "int | str"]


class Overlap(NamedTuple):
    """Where both sides were at work."""

    column: int
    """What it is told by: `ID` or `TIME`."""
    low: int
    high: int

    def holds(self, row: Row) -> bool:
        value = row[self.column]
        return value is None or self.low <= value <= self.high


class Examples:
    """Keeps the first examples of each kind and symbol, by their trades' positions."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: dict[tuple[str, int], list[tuple[int, Example]]] = {}
        self._behind: dict[tuple[str, int], int] = {}

    def offer(self, kind: str, symbol: int, position: int, make: Callable[[], Example]) -> None:
        """*make* is called only if the example is kept."""
        place = kind, symbol
        behind = self._behind.get(place)
        if not self._count or (behind is not None and position > behind):
            return
        kept = self._kept.setdefault(place, [])
        kept.append((position, make()))
        if len(kept) >= 2 * self._count:
            kept.sort(key=lambda each: each[0])
            del kept[self._count :]
            self._behind[place] = kept[-1][0]

    def of(self, kind: str, symbol: int) -> list[Example]:
        kept = sorted(self._kept.get((kind, symbol), ()), key=lambda each: each[0])
        return [example for _, example in kept[: self._count]]


class Matcher:
    """Matches two sides whose trades are set aside. Used once."""

    def __init__(self, a: Side, b: Side, orders: Orders, examples: Examples) -> None:
        """:param orders: made for the symbols of `common_names`."""
        self._orders = orders
        self._examples = examples
        self._names = common_names(a, b)
        numbers = {name: number for number, name in enumerate(self._names)}
        # The two sides met the symbols in different orders.
        self._numbers_b = [numbers[name] for name in b.names]
        nothing = Span()
        spans_b = dict(zip(b.names, b.spans, strict=True))
        self._spans_b = [spans_b.get(name, nothing) for name in self._names]
        self._spans_a = a.spans + [nothing] * (len(self._names) - len(a.names))
        self.steps_ns = self._steps()
        self._step_ns = [self.steps_ns.get(exchange, 1) for exchange, _ in self._names]
        self._overlaps = self._all_overlaps()
        self.results = [
            SymbolResult(*name, own.trades, other.trades)
            for name, own, other in zip(self._names, self._spans_a, self._spans_b, strict=True)
        ]

    def run(self, rows_a: Spill, rows_b: Spill, advance: Callable[[int], None]) -> None:
        """Matches every bucket. :raises OSError: the rows can't be read."""
        for bucket in range(BUCKETS):
            self._match(rows_a.rows(bucket), rows_b.rows(bucket))
            advance(1)

    def found(self, kind: str, number: int, count: int) -> Found:
        """The differences of a kind in one symbol."""
        return Found(kind, *self._names[number], count, self._examples.of(kind, number))

    def _steps(self) -> dict[str, int]:
        """How exact the times are of the coarser side, by exchange; only where both have some."""
        found: dict[str, int] = {}
        for exchange in {exchange for exchange, _ in self._names}:
            each = [
                [span.step_ns for span in self._timed(spans, exchange)]
                for spans in (self._spans_a, self._spans_b)
            ]
            if all(each):
                found[exchange] = max(map(min, each))
        return found

    def _timed(self, spans: list[Span], exchange: str) -> list[Span]:
        """An exchange's symbols whose times are known."""
        return [
            span
            for (name, _), span in zip(self._names, spans, strict=True)
            if name == exchange and span.first_ns is not None
        ]

    # --- where both were at work

    def _all_overlaps(self) -> list[Overlap | None]:
        """By symbol; None: that is not known, and the whole is taken for it."""
        whole = {
            exchange: _by_time(
                _whole(self._timed(self._spans_a, exchange)),
                _whole(self._timed(self._spans_b, exchange)),
            )
            for exchange in {exchange for exchange, _ in self._names}
        }
        spans = zip(self._names, self._spans_a, self._spans_b, strict=True)
        return [_overlap(a, b) or whole[exchange] for (exchange, _), a, b in spans]

    # --- the trades

    def _match(self, rows_a: list[Row], rows_b: list[Row]) -> None:
        a = self._firsts(rows_a, range(len(self._spans_a)), DOUBLED_A)
        b = self._firsts(rows_b, self._numbers_b, DOUBLED_B)
        for key, row in b.items():
            other = a.pop(key, None)
            if other is None:
                self._only_one(key[0], row, MISSING_A)
            else:
                self._both(other, row)
        for key, row in a.items():
            self._only_one(key[0], row, MISSING_B)

    def _firsts(self, rows: list[Row], numbers: Sequence[int], kind: str) -> dict[_Key, Row]:
        """The first copy of each trade. *numbers*: those of its side → the common ones."""
        firsts: dict[_Key, Row] = {}
        copies: dict[_Key, list[Row]] = {}
        for row in rows:
            key = numbers[row[SYMBOL]], row[ID]
            if firsts.setdefault(key, row) is not row:
                copies.setdefault(key, []).append(row)
        for key, more in copies.items():
            result, first = self.results[key[0]], firsts[key]
            if kind == DOUBLED_A:
                result.doubled_a += len(more)
            else:
                result.doubled_b += len(more)
            make = partial(_doubled, first, more, kind)
            self._examples.offer(kind, key[0], first[POSITION], make)
        return firsts

    def _only_one(self, number: int, row: Row, kind: str) -> None:
        result, overlap = self.results[number], self._overlaps[number]
        inside = overlap is None or overlap.holds(row)
        if kind == MISSING_A:
            result.missing_a += inside
            result.outside_b += not inside
        else:
            result.missing_b += inside
            result.outside_a += not inside
        if inside:
            a, b = (None, _values(row)) if kind == MISSING_A else (_values(row), None)
            self._examples.offer(
                kind, number, row[POSITION], lambda: Example(str(row[ID]), a, b, "")
            )

    def _both(self, a: Row, b: Row) -> None:
        number = a[SYMBOL]
        result = self.results[number]
        result.common += 1
        if a[PRICE:SEEN] != b[PRICE:SEEN] and (fields := self._differing(a, b)):
            result.different += 1
            result.fields.update(fields)
            self._examples.offer(
                DIFFERENT,
                number,
                a[POSITION],
                lambda: Example(str(a[ID]), _values(a), _values(b), ", ".join(fields)),
            )
        if a[SEEN] is not None and b[SEEN] is not None:
            result.latency.add((a[SEEN] - b[SEEN]) // _NS_PER_US)
        self._orders.add(number, a[POSITION], b[POSITION], a[ID])

    def _differing(self, a: Row, b: Row) -> list[str]:
        found = [
            name
            for name, column in (("price", PRICE), ("quantity", QUANTITY))
            if a[column] != b[column] and not _same_number(a[column], b[column])
        ]
        if a[SIDE] != b[SIDE] and a[SIDE] is not None and b[SIDE] is not None:
            found.append("side")
        known = a[TIME] is not None and b[TIME] is not None
        # The coarser side may have cut its digits off, or rounded them.
        if known and abs(a[TIME] - b[TIME]) >= self._step_ns[a[SYMBOL]]:
            found.append("exchange_timestamp")
        return found


def common_names(a: Side, b: Side) -> list[tuple[str, str]]:
    """Exchange and symbol of all that there are: A's by its numbers, then what only B has."""
    own = set(a.names)
    return a.names + [name for name in b.names if name not in own]


def _whole(spans: Iterable[Span]) -> Span:
    """From the first to the last trade of all."""
    whole = Span()
    for span in spans:
        for time_ns in (span.first_ns, span.last_ns):
            whole.take("", time_ns, 0)
    return whole


def _overlap(a: Span, b: Span) -> Overlap | None:
    """By ids where all are numbers, else by time; None: the two have no stretch in common."""
    if a.first_id is None or a.last_id is None or b.first_id is None or b.last_id is None:
        return _by_time(a, b)
    low, high = max(a.first_id, b.first_id), min(a.last_id, b.last_id)
    return Overlap(ID, low, high) if low <= high else None


def _by_time(a: Span, b: Span) -> Overlap | None:
    if a.first_ns is None or a.last_ns is None or b.first_ns is None or b.last_ns is None:
        return None
    return Overlap(TIME, max(a.first_ns, b.first_ns), min(a.last_ns, b.last_ns))


def _same_number(a: str | None, b: str | None) -> bool:
    """Whether both are written differently and mean the same, or one is not there."""
    return a is None or b is None or Decimal(a) == Decimal(b)


def _values(row: Row) -> Values:
    return Values(row[PRICE], row[QUANTITY], row[SIDE], row[TIME])


def _doubled(first: Row, more: list[Row], kind: str) -> Example:
    note = f"{1 + len(more)} times"
    if any(row[PRICE:SEEN] != first[PRICE:SEEN] for row in more):
        note += ", with different values"
    values = _values(first)
    a, b = (values, None) if kind == DOUBLED_A else (None, values)
    return Example(str(first[ID]), a, b, note)
