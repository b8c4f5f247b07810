"""The simulated exchange's books and clock: what its WebSocket and REST sides both show."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from feedmono.simulator.faults import Faults
from feedmono.simulator.market import MadeSource, Market, RecordedSource, Source, load_recording
from feedmono.simulator.options import Options
from feedmono.simulator.tape import Made, Tape

FIRST_ID = 1_000_001


def tapes(options: Options, recorded_symbol: str | None) -> dict[str, Tape]:
    """The tape of each symbol. *recorded_symbol*: whose recording the package has; the limit
    is shared out evenly, the first symbols getting what is left over."""
    made: dict[str, Tape] = {}
    count = len(options.markets)
    for n, market in enumerate(options.markets):
        source, first_id = _source(options, market, market.symbol == recorded_symbol)
        limit = options.limit
        if limit is not None:
            limit = limit // count + (n < limit % count)
        made[market.symbol] = Tape(market, source, first_id, limit, options.batch)
    return made


def _source(options: Options, market: Market, recorded: bool) -> tuple[Source, int]:
    if options.recorded and recorded:
        recording = load_recording(options.first_id)
        return recording, recording.first_id
    first_id = FIRST_ID if options.first_id is None else options.first_id
    return MadeSource(options.seed, market), first_id


class Venue:
    """The books, the clock and the limits that both sides of the exchange share."""

    def __init__(
        self,
        books: Mapping[str, Tape],
        faults: Faults,
        strict: bool,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.tapes = books
        self.faults = faults
        self.strict = strict
        self.requests: Counter[str] = Counter()
        """REST requests by path."""
        self._clock_ns = clock_ns
        self._pages = 0

    def now_us(self) -> int:
        """The exchange's clock: Unix time in µs, skewed as the fault says."""
        return self._clock_ns() // 1000 + int(self.faults.skew * 1_000_000)

    def recorded_tape(self) -> tuple[Tape, RecordedSource] | None:
        """The tape that replays a recording, if one does."""
        for tape in self.tapes.values():
            if isinstance(tape.source, RecordedSource):
                return tape, tape.source
        return None

    def spoiled(self, tape: Tape, rows: Sequence[Made]) -> list[Made]:
        """A REST page as the faults ``rest-wrong`` and ``rest-none`` leave it."""
        self._pages += 1
        key = f"page {self._pages}"
        if self.faults.happens("rest-none", key):
            return []
        if not self.faults.happens("rest-wrong", key):
            return list(rows)
        way = int(self.faults.dice("way", key) * 3)
        if way == 0:
            return list(reversed(rows))
        if way == 1:
            return [row._replace(trade_id=row.trade_id + 1_000_000_007) for row in rows]
        others = [t for t in self.tapes.values() if t is not tape] or [tape]
        other = others[self._pages % len(others)]
        return other.recent(len(rows))


class Window:
    """Counts what happens within a sliding time: at most *limit* in *period_s* seconds."""

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit = limit
        self._period_s = period_s
        self._times: deque[float] = deque()

    def admits(self, now_s: float) -> bool:
        """Whether one more is within the limit; it is counted only then."""
        while self._times and self._times[0] <= now_s - self._period_s:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return False
        self._times.append(now_s)
        return True
