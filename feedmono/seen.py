"""Which trades were handed on already, in memory: the first defence against doubled trades.

Exchanges repeat trades: Kraken sends a symbol's last fifty on every subscription, a reconnect
may overlap with what came before. Each trade is handed on once. What a symbol has shown so far
is a few ranges of ids, since ids are consecutive but for what was missed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from feedmono.trade import SNAPSHOT, STREAM, Trade

MAX_RANGES = 1000
"""How many separate ranges a symbol may have."""


EPOCH_S = 1.0
"""How much newer than everything known a trade below the last id must be to begin a new epoch."""


class _Ranges:
    """The ids of one symbol, as disjoint ranges in order; ``starts[i]`` to ``ends[i]``, both
    included, and at least one id missing between two ranges."""

    __slots__ = ("ends", "newest_us", "starts")

    def __init__(self, first: Trade) -> None:
        self.starts = [first.trade_id]
        self.ends = [first.trade_id]
        self.newest_us = first.time_us
        """The latest time of a trade whose id was the highest: never lowered."""

    def add(self, trade_id: int, repeats: bool) -> bool:
        """Whether the id is new; it is known afterwards.

        :param repeats: an id below all that are known is not new.
        """
        starts, ends = self.starts, self.ends
        before = bisect_right(starts, trade_id) - 1
        if before < 0 and repeats:
            return False
        if before >= 0 and trade_id <= ends[before]:
            return False
        joins_before = before >= 0 and trade_id == ends[before] + 1
        joins_after = before + 1 < len(starts) and trade_id == starts[before + 1] - 1
        if joins_before and joins_after:
            ends[before] = ends[before + 1]
            del starts[before + 1], ends[before + 1]
        elif joins_before:
            ends[before] = trade_id
        elif joins_after:
            starts[before + 1] = trade_id
        else:
            starts.insert(before + 1, trade_id)
            ends.insert(before + 1, trade_id)
            if len(starts) > MAX_RANGES:
                ends[0] = ends[1]
                del starts[1], ends[1]
        return True


class SeenIds:
    """The trade ids of one exchange that were handed on since this was made, per symbol.

    An id is new unless it lies in one of the ranges known: a trade that comes late still fills its
    hole. But a *snapshot's* id below all that are known is taken as seen before: after a restart,
    a snapshot repeats what the process before delivered.

    An id that is not above the last, with a time at least `EPOCH_S` newer than everything known of
    its symbol, is neither a repeat nor late: the exchange has begun its ids anew (a relisting, a
    test exchange started again). What was known of the symbol is forgotten then, and the symbol is
    named in `begun_anew`.

    A symbol keeps at most `MAX_RANGES` ranges. With one more its two oldest become one: a trade
    that comes to fill the hole between them after all is taken as seen. A thousand newer holes of
    the same symbol are open by then.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """How many trades were taken as seen before and not handed on."""
        self.begun_anew: list[str] = []
        """Symbols whose ids began anew; the caller takes them out."""
        self._ranges: dict[str, _Ranges] = {}

    def last(self, symbol: str) -> int | None:
        """The highest id that was handed on; None if the symbol has none yet."""
        ranges = self._ranges.get(symbol)
        return None if ranges is None else ranges.ends[-1]

    def admit(self, trades: Sequence[Trade], origin: int = STREAM) -> Sequence[Trade]:
        """Those of a frame's *trades* that are new, in their order, each once; they count as
        seen from now on. *trades* itself if all are new."""
        # Nearly every frame is one trade with the next id: 0.2 µs.
        if len(trades) == 1:
            trade = trades[0]
            ranges = self._ranges.get(trade.symbol)
            if ranges is not None:
                ends = ranges.ends
                if trade.trade_id == ends[-1] + 1:
                    ends[-1] += 1
                    # max() would cost 0.05 µs more.
                    if trade.time_us > ranges.newest_us:  # noqa: PLR1730
                        ranges.newest_us = trade.time_us
                    return trades
        # In the order of ids, so that the lowest of a symbol's first frame begins its ranges, and
        # no trade of a frame makes the hole of another one forgotten.
        order = sorted(range(len(trades)), key=lambda i: trades[i].trade_id)
        repeats = origin == SNAPSHOT
        new = {i for i in order if self._add(trades[i], repeats)}
        if len(new) == len(trades):
            return trades
        self.dropped += len(trades) - len(new)
        return tuple(trade for i, trade in enumerate(trades) if i in new)

    def _add(self, trade: Trade, repeats: bool) -> bool:
        ranges = self._ranges.get(trade.symbol)
        if ranges is None:
            self._ranges[trade.symbol] = _Ranges(trade)
            return True
        top = trade.trade_id > ranges.ends[-1]
        if not top and trade.time_us >= ranges.newest_us + EPOCH_S * 1e6:
            self._ranges[trade.symbol] = _Ranges(trade)
            self.begun_anew.append(trade.symbol)
            return True
        if not ranges.add(trade.trade_id, repeats):
            return False
        if top:
            ranges.newest_us = max(ranges.newest_us, trade.time_us)
        return True
