"""One side of a comparison: its trades set aside on disk, and what is told of each symbol."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from feedmono.compare.result import CompareError, Undecoded
from feedmono.compare.spill import Spill
from feedmono.compare.trade import NoTrade, Take, Taken
from feedmono.sinks.records import Records, Unreadable

# The columns of the rows that are set aside.
SYMBOL, ID, POSITION, PRICE, QUANTITY, SIDE, TIME, SEEN = range(8)

BUCKETS = 512
"""Ten million trades make buckets of 20,000 on each side."""

MAX_SYMBOLS = 20_000
"""More than any exchange has; a mapping that takes an id for a symbol ends here."""

# Times are as exact as the coarsest of these that divides all of them.
_STEPS_NS = (10**9, 10**6, 10**3, 1)


@dataclass(slots=True)
class Span:
    """What a side has of one symbol."""

    trades: int = 0
    first_id: int | None = None
    """None: not all ids are whole numbers, or there is no trade yet."""
    last_id: int | None = None
    numbered: bool = True
    first_ns: int | None = None
    """By the exchange's time."""
    last_ns: int | None = None
    step_ns: int = _STEPS_NS[0]
    lane: int = -1
    """The one lane that its trades came in."""
    mixed: bool = False
    """They came in several, and have no order."""

    def take(self, trade_id: int | str, time_ns: int | None, lane: int) -> None:
        self.trades += 1
        if self.numbered:
            self._take_id(trade_id)
        if time_ns is not None:
            if self.first_ns is None or time_ns < self.first_ns:
                self.first_ns = time_ns
            if self.last_ns is None or time_ns > self.last_ns:
                self.last_ns = time_ns
            if time_ns % self.step_ns:
                self.step_ns = next(step for step in _STEPS_NS if not time_ns % step)
        if lane != self.lane:
            self.mixed = self.lane >= 0
            self.lane = lane

    def _take_id(self, trade_id: int | str) -> None:
        if not isinstance(trade_id, int):
            self.numbered = False
            self.first_id = self.last_id = None
            return
        if self.first_id is None or trade_id < self.first_id:
            self.first_id = trade_id
        if self.last_id is None or trade_id > self.last_id:
            self.last_id = trade_id


@dataclass(slots=True)
class Side:
    """All that was read of a source. Its rows are in a `Spill` of `BUCKETS`."""

    names: list[tuple[str, str]] = field(default_factory=list)
    """Exchange and symbol, by the number that stands for them in the rows."""
    spans: list[Span] = field(default_factory=list)
    """By the same number."""
    records: int = 0
    trades: int = 0
    passed_over: int = 0
    """Records that the mapping or the command's options leave out."""
    undecoded: int = 0
    undecoded_named: list[Undecoded] = field(default_factory=list)
    torn: int = 0
    """Ends of files that may still be written to."""


class Collector:
    """Reads a source to its end. Used once."""

    def __init__(
        self,
        take: Take,
        wanted: Callable[[Taken], bool] | None,
        rows: Spill,
        max_named: int,
    ) -> None:
        """:param wanted: which trades are asked for; None: all.
        :param rows: where they go, by the columns above; equal keys of both sides go into the
            same bucket.
        """
        assert rows.buckets == BUCKETS
        self.side = Side()
        self._take = take
        self._wanted = wanted
        self._rows = rows
        self._max_named = max_named
        self._numbers: dict[tuple[str, str], tuple[int, int, Span]] = {}
        """By exchange and symbol: the number, what spreads its ids over the buckets, the span."""

    def run(self, source: Records, advance: Callable[[int], None]) -> None:
        """:raises CompareError: there are too many symbols.
        :raises SpillFull: there is no more room on the disk.
        :raises Exception: what the source could not do.
        """
        for chunk in source.read():
            stamps = chunk.stamps_ns
            for index, record in enumerate(chunk.records):
                stamp_ns = stamps[index] if stamps is not None else None
                if type(record) is Unreadable:
                    self._refuse(f"{chunk.where} {chunk.numbers[index]}", record)
                    continue
                try:
                    taken = self._take(record, stamp_ns)
                except NoTrade as error:
                    place = f"{chunk.where} {chunk.numbers[index]}"
                    self._refuse(place, Unreadable(str(error)))
                    continue
                if taken is None or (self._wanted is not None and not self._wanted(taken)):
                    self.side.passed_over += 1
                else:
                    self._add(taken, chunk.lane)
            self.side.records += len(chunk.records)
            advance(chunk.done)
        self._rows.flush()

    def _refuse(self, place: str, what: Unreadable) -> None:
        if what.torn:
            self.side.torn += 1
            return
        self.side.undecoded += 1
        if len(self.side.undecoded_named) < max(self._max_named, 1):
            # Others' text may hold what no terminal takes.
            reason = what.reason.encode(errors="backslashreplace").decode()
            self.side.undecoded_named.append(Undecoded(place, reason))

    def _add(self, taken: Taken, lane: int) -> None:
        exchange, symbol, trade_id, price, quantity, side, time_ns, seen_ns = taken
        known = self._numbers.get((exchange, symbol))
        number, spread, span = known or self._new_symbol(exchange, symbol)
        span.take(trade_id, time_ns, lane)
        mixed = trade_id if type(trade_id) is int else zlib.crc32(str(trade_id).encode())
        position = self.side.trades
        self.side.trades = position + 1
        self._rows.add(
            (mixed + spread) % BUCKETS,
            (number, trade_id, position, price, quantity, side, time_ns, seen_ns),
        )

    def _new_symbol(self, exchange: str, symbol: str) -> tuple[int, int, Span]:
        side = self.side
        if len(side.names) >= MAX_SYMBOLS:
            raise CompareError(
                f"there are more than {MAX_SYMBOLS:,} symbols, such as {symbol!r}: does the "
                "mapping take something else for the symbol?"
            )
        spread, span = zlib.crc32(f"{exchange} {symbol}".encode()), Span()
        known = self._numbers[exchange, symbol] = len(side.names), spread, span
        side.names.append((exchange, symbol))
        side.spans.append(span)
        return known
