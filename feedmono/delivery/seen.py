"""Which trades were handed on already: what the ledger knows, and what is on its way to the sink.

Exchanges repeat trades: Kraken sends a symbol's last fifty on every subscription, connections
overlap, REST pages show more than was asked for. Each trade is handed on once. And where ids
jump, something was missed: a hole is found here first, before the sink has acknowledged anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from feedmono.delivery.ids import Ids, Outcome
from feedmono.trade import BACKFILL, Trade

EXCHANGE = "exchange"
"""The cause of a hole on a connection that nothing had befallen."""
RESTART = "restart"
"""The cause of a hole over an end of this process."""
UNSUBSCRIBED = "unsubscribed"
"""The cause of a hole over a time in which nobody wanted the symbol."""

_MAX_EVENTS = 1000


class Counts(NamedTuple):
    """What came out about missing trades."""

    found: int
    """Holes,"""
    found_trades: int
    """and the ids in them."""
    backfilled: int
    late: int


class Seen:
    """The trades of one exchange that need not be handed on again, by symbol. See `Ids` for what
    is new and what is not."""

    def __init__(self, symbols: dict[str, Ids], max_trades: int, sequence: int = -1) -> None:
        """:param symbols: what was delivered; changed in place.
        :param max_trades: as of `Ids.add`.
        :param sequence: the ring sequence of the newest record that was done before.
        """
        self.symbols = symbols
        self.dropped = 0
        """How many trades were taken as seen before and not handed on."""
        self.begun_anew: list[str] = []
        """Symbols whose ids began anew; the caller takes them out."""
        self.far: list[tuple[str, int]] = []
        """Trades that do not fit the ids of their symbol; the caller takes them out."""
        self.touched: set[str] = set()
        """Symbols whose holes have changed; the caller takes them out."""
        self.max_trades = max_trades
        self.cause = ""
        """Of the holes that the last frame has opened."""
        self.found = 0
        """How many holes were found; as the next three, since `take_counts`."""
        self.found_trades = 0
        """How many ids were in them."""
        self.backfilled = 0
        """How many missing trades came by REST."""
        self.late = 0
        """How many missing trades came late on the stream."""
        self.folded: list[str] = []
        """Symbols with too many holes, some of which were forgotten; the caller takes them out."""
        self._events: deque[tuple[int, str]] = deque(maxlen=_MAX_EVENTS)
        self._unsubscribed: dict[str, int] = {}
        """Where in the ring a symbol's subscription ended last."""
        self._begun = sequence

    def take_counts(self) -> Counts:
        """What was counted since the last call."""
        counts = Counts(self.found, self.found_trades, self.backfilled, self.late)
        self.found = self.found_trades = self.backfilled = self.late = 0
        return counts

    def happened(self, cause: str, sequence: int) -> None:
        """Something that loses trades, at that place of the ring."""
        self._events.append((sequence, cause))

    def unsubscribed(self, symbol: str, sequence: int) -> None:
        """The symbol's subscription was ended, at that place of the ring."""
        self._unsubscribed[symbol] = sequence

    def admit(
        self, trades: Sequence[Trade], origin: int, sequence: int, now_us: int
    ) -> Sequence[Trade]:
        """Those of a frame's *trades* that are new, in their order, each once; they count as
        seen from now on. *trades* itself if all are new."""
        self.cause = ""
        # In the order of ids, so that the lowest of a symbol's first frame begins its range, and
        # a frame's own trades leave no holes between them.
        order = sorted(range(len(trades)), key=lambda i: trades[i].trade_id)
        new = {i for i in order if self._add(trades[i], origin, sequence, now_us)}
        if len(new) == len(trades):
            return trades
        self.dropped += len(trades) - len(new)
        return tuple(trade for i, trade in enumerate(trades) if i in new)

    def _add(self, trade: Trade, origin: int, sequence: int, now_us: int) -> bool:
        symbol = trade.symbol
        ids = self.symbols.get(symbol)
        if ids is None:
            self.symbols[symbol] = ids = Ids(trade)
            ids.sequence = sequence
            return True
        if origin != BACKFILL and ids.is_next(trade):
            ids.follow(trade, sequence)
            return True
        cause = self._cause(symbol, ids.sequence)
        found, found_trades, folded = ids.found, ids.found_trades, ids.folded
        outcome = ids.add(trade, origin, cause, now_us, self.max_trades, sequence)
        if outcome is Outcome.REPEATED:
            return False
        if origin == BACKFILL:
            # Beyond the last one as well: REST has shown what no later trade had revealed.
            self.backfilled += 1
        elif outcome is Outcome.FILLED:
            self.late += 1
        if outcome is Outcome.EPOCH:
            self.begun_anew.append(symbol)
        elif outcome is Outcome.FAR:
            self.far.append((symbol, trade.trade_id))
        if ids.found != found:
            self.cause = self.cause or cause
        if outcome is not Outcome.NEXT or ids.found != found:
            self.touched.add(symbol)
            self.found += ids.found - found
            self.found_trades += ids.found_trades - found_trades
        if ids.folded > folded:
            self.folded.append(symbol)
        ids.changes = {}
        ids.fills.clear()
        ids.ended.clear()
        return True

    def _cause(self, symbol: str, sequence: int) -> str:
        """What happened first after the record with that sequence; above all that nobody wanted
        the symbol."""
        if self._unsubscribed.get(symbol, -1) > sequence:
            return UNSUBSCRIBED
        first = ""
        for at, cause in reversed(self._events):
            if at <= sequence:
                break
            first = cause
        return first or (EXCHANGE if sequence > self._begun else RESTART)

    def miss(self, trade: Trade, cause: str, now_us: int) -> None:
        """Its delivery has failed for good: it is missing again."""
        ids = self.symbols[trade.symbol]
        ids.miss(trade.trade_id, cause, now_us, trade.time_us)
        ids.changes = {}
        self.touched.add(trade.symbol)
        self.found += 1
        self.found_trades += 1
