"""What consumers are told of completeness: which symbol's coverage is due to be published."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from feedmono.delivery.holes import State
from feedmono.delivery.ids import Ids
from feedmono.sinks.base import MAX_COVERAGE_HOLES, Coverage
from feedmono.sinks.base import Hole as OpenHole


def coverage_of(symbol: str, ids: Ids) -> Coverage:
    """What of a symbol is delivered."""
    holes = list(ids.open_holes())
    return Coverage(
        symbol,
        ids.epoch,
        ids.first_id,
        ids.last_id,
        [
            OpenHole(h.first_id, h.last_id, h.cause, h.before.time_us if h.before else ids.epoch_us)
            for h in holes[:MAX_COVERAGE_HOLES]
        ],
        sum(hole.size for hole in holes),
        ids.missing(State.ABSENT),
        ids.missing(State.BEYOND) + ids.folded,
        ids.newest_us,
    )


class News:
    """The coverages that are to be published: each symbol's once an interval while it moves, and
    at once when its holes change. *clock* is monotonic, in seconds."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._due: dict[str, float] = {}
        self._told: dict[str, tuple[float, object]] = {}

    def changed(self, symbols: Iterable[str], delivered: Mapping[str, Ids]) -> None:
        """The ledger has committed something new of these symbols."""
        for symbol in symbols:
            told_s, shape = self._told.get(symbol, (-math.inf, None))
            at_once = shape != _shape(delivered[symbol])
            due_s = -math.inf if at_once else told_s + self._interval_s
            self._due[symbol] = min(due_s, self._due.get(symbol, math.inf))

    def next_s(self) -> float:
        """When `due` has something; ``math.inf`` for never."""
        return min(self._due.values(), default=math.inf)

    def due(self, delivered: Mapping[str, Ids], everything: bool = False) -> list[Coverage]:
        """What is to be published now; they count as published.

        :param everything: what would be due only later as well.
        """
        now_s = self._clock()
        symbols = [s for s, due_s in self._due.items() if everything or due_s <= now_s]
        for symbol in symbols:
            del self._due[symbol]
            self._told[symbol] = now_s, _shape(delivered[symbol])
        return [coverage_of(symbol, delivered[symbol]) for symbol in symbols]


def _shape(ids: Ids) -> object:
    """What of a symbol's coverage is worth telling at once."""
    holes = ids.holes
    ends = (holes[0].first_id, holes[-1].last_id) if holes else None
    return ids.epoch, ids.found, ids.backfilled + ids.late, len(holes), ends, ids.missing()
