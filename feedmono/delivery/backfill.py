"""What is asked for by REST, when, and what an answer proves: from the holes to the requests.

A hole is asked for after a moment's grace, since a trade that is merely late fills it by itself.
One request of a symbol is out at a time, a few of all symbols, in turn. What comes back is
believed only if it shows a trade that is known beside the hole, with the same figures: a page of
another symbol has the same ids. What is still missing is asked for again with growing waits. Ids
that REST lacks while it shows those on both sides are absent at the exchange, once a second look
has confirmed it. Nothing here does I/O; requests leave through a callable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, NamedTuple

from feedmono.config import BackfillConfig
from feedmono.delivery.holes import UNKNOWN, Edge, Hole, State, mark_of
from feedmono.delivery.ids import Ids
from feedmono.delivery.seen import Seen
from feedmono.exchanges.base import Decoded, Exchange, PageRequest
from feedmono.trade import Trade

GRACE_S = 0.5
"""How long a hole may be filled by late trades before it is asked for."""
TAIL_WAITS_S = (1.0, 10.0)
"""How long after a subscription, and after the first look, a quiet symbol's tail is looked at:
REST may lag behind the stream."""
FIRST_RETRY_S = 2.0
RETRY_CAP_S = 600.0
ANSWER_LIMIT_S = 120.0
"""A request without an answer for so long is lost."""
MAX_OUTSTANDING = 8
DEAD_RETRY_S = 60.0
"""How long after a trade could not be stored it is asked for again; doubled each time, up to
`DEAD_RETRY_CAP_S`."""
DEAD_RETRY_CAP_S = 3600.0
DEAD = "dead"
"""The cause of a hole whose trade could not be stored."""

_MAX_SINCE = 10_000
_LOOK_AGAIN_S = 1.0
_MAX_DEAD = 10_000
_STEP_BACK_US = 1_000_000
# A time by REST may have more or fewer digits than the stream's.
_TIME_TOLERANCE_US = 1000

Settle = Callable[[Any], object]
"""What the ledger is to be told in its turn; called with it."""


class Wanted(NamedTuple):
    """What of a page is wanted."""

    trades: Sequence[Trade]
    """Those that are missing, not admitted yet."""
    flaw: str
    """Why the page can't be what was asked for; empty if it can."""


@dataclass(slots=True)
class _Tail:
    """A look at what came after a symbol's last known trade."""

    last_id: int
    due_s: float
    looks: int = 0
    tries: int = 0


@dataclass(slots=True)
class _Out:
    """A request that is out."""

    wish: PageRequest
    until_s: float
    edge: Edge
    """The last known trade when it was asked."""
    aged: bool
    """Whether it begins later than its hole: what is older is not asked for."""


class Backfill:
    """The requests of one exchange. *clock* is monotonic, in seconds."""

    def __init__(
        self,
        seen: Seen,
        exchange: Exchange,
        config: BackfillConfig,
        symbols: Iterable[str],
        ask: Callable[[PageRequest], bool],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """:param symbols: those that are subscribed. What came after the last known trade of
            each is looked at soon, as after a subscription: whoever knew of one may have died.
        :param ask: sends a request; False: not now.
        :param wall: Unix time in seconds.
        """
        self.open_holes = 0
        self.open_trades = 0
        self.absent = 0
        self.beyond = 0
        self._seen = seen
        self._exchange = exchange
        self._rows = exchange.limits.page_rows
        self._max_age_us = int(config.max_age_s * 1e6)
        self._confirm_after_s = config.confirm_after_s
        self._ask = ask
        self._clock = clock
        self._wall = wall
        self._due: dict[str, float] = {}
        """When a symbol's holes are to be looked at; those asked last stand last."""
        self._tails: dict[str, _Tail] = {}
        self._out: dict[str, _Out] = {}
        self._since_us: dict[tuple[str, int], int] = {}
        """Where the next page by time begins, by symbol and the hole's last id, if not at its
        neighbour."""
        self._dead: dict[tuple[str, int], int] = {}
        """How often a trade could not be stored, by symbol and the last id of its hole."""
        self._settled: list[Settle] = []
        self._symbols: frozenset[str] = frozenset()
        self._left: set[str] = set()
        """Symbols that were subscribed once and are not wanted any more."""
        self._counts: dict[str, tuple[int, int, int, int]] = {}
        seen.touched |= {symbol for symbol, ids in seen.symbols.items() if ids.holes}
        self.follow(symbols)

    # --- what happens

    def follow(self, symbols: Iterable[str]) -> None:
        """From now on these are subscribed. Of the others nothing new is asked for; the holes that
        they have are filled all the same."""
        before, self._symbols = self._symbols, frozenset(symbols)
        gone = before - self._symbols
        self._left = (self._left | gone) - self._symbols
        for symbol in gone:
            self._tails.pop(symbol, None)
        for symbol in self._symbols - before:
            self.subscribed(symbol)

    def subscribed(self, symbol: str) -> None:
        """The exchange has begun to send the symbol's trades: were there any before?"""
        ids = self._seen.symbols.get(symbol)
        if ids is not None and self._max_age_us and symbol not in self._left:
            self._tails[symbol] = _Tail(ids.last_id, self._clock() + TAIL_WAITS_S[0])

    def snapshot(self, symbol: str, last_id: int) -> None:
        """The exchange has shown its latest trades, up to that one."""
        tail = self._tails.get(symbol)
        if tail is not None and last_id >= tail.last_id:
            del self._tails[symbol]

    def reader_started(self) -> None:
        """Requests to the reader before are lost."""
        for symbol in list(self._out):
            self._in_vain(self._out.pop(symbol), passing=True)

    def begun_anew(self, symbol: str) -> None:
        """The exchange has begun the symbol's ids anew: nothing of before is asked for."""
        self._out.pop(symbol, None)
        self._tails.pop(symbol, None)
        self._due.pop(symbol, None)

    def failed(self, symbol: str, first_id: int, passing: bool) -> None:
        """A request brought no page.

        :param passing: for a reason that says nothing about this request.
        """
        out = self._out.get(symbol)
        if out is None or out.wish.first_id != first_id:
            return
        del self._out[symbol]
        self._in_vain(out, passing)

    # --- asking

    def next_s(self) -> float:
        """When `tick` has something to do at the latest; ``math.inf`` for never."""
        if self._seen.touched:
            return self._clock()
        due_s = math.inf
        if len(self._out) < MAX_OUTSTANDING:
            due_s = min((d for s, d in self._due.items() if s not in self._out), default=due_s)
            tails = (t.due_s for s, t in self._tails.items() if s not in self._out)
            due_s = min(due_s, min(tails, default=due_s))
        return min(due_s, min((out.until_s for out in self._out.values()), default=due_s))

    def tick(self, caught_up: bool = True) -> list[Settle]:
        """Asks for what is due; what the ledger is to be told (holes that are given up).

        :param caught_up: everything that the reader has told is read: an answer that is not
            there by now did not come in time.
        """
        now_s = self._clock()
        for symbol, out in list(self._out.items()):
            if out.until_s <= now_s:
                if caught_up:
                    self._lost(symbol)
                else:
                    out.until_s = now_s + _LOOK_AGAIN_S
        for symbol in self._seen.touched:
            self._plan(symbol, now_s)
        self._seen.touched.clear()
        self._send_due(now_s)
        settled, self._settled = self._settled, []
        return settled

    def _send_due(self, now_s: float) -> None:
        for symbol in [s for s, due_s in self._due.items() if due_s <= now_s]:
            if len(self._out) >= MAX_OUTSTANDING:
                return
            if symbol not in self._out and not self._send(symbol, self._wish(symbol, now_s), now_s):
                return
        for symbol in [s for s, tail in self._tails.items() if tail.due_s <= now_s]:
            if len(self._out) >= MAX_OUTSTANDING:
                return
            if symbol not in self._out and not self._look(symbol, now_s):
                return

    def _plan(self, symbol: str, now_s: float) -> None:
        """Finds out when the symbol's holes are due, and gives up those that are too old."""
        ids = self._seen.symbols[symbol]
        cutoff_us = self._cutoff_us()
        due_s = math.inf
        for hole in list(ids.open_holes()):
            newest = hole.after or hole.before
            if not self._max_age_us or (newest and newest.time_us < cutoff_us):
                self._settled.append(self._give_up(symbol, ids, hole.first_id, hole.last_id))
                continue
            if not hole.due_s:
                dead = hole.cause == DEAD
                hole.due_s = now_s + (self._dead_wait_s(symbol, hole) if dead else GRACE_S)
            due_s = min(due_s, hole.due_s)
        if due_s == math.inf:
            self._due.pop(symbol, None)
        else:
            self._due[symbol] = due_s
        self._count(symbol, ids)

    def _dead_wait_s(self, symbol: str, hole: Hole) -> float:
        """A trade that could not be stored is asked for less and less often."""
        if len(self._dead) >= _MAX_DEAD:
            self._dead.clear()
        times = self._dead.get((symbol, hole.last_id), 0)
        self._dead[symbol, hole.last_id] = times + 1
        return min(DEAD_RETRY_S * 2.0 ** min(times, 30), DEAD_RETRY_CAP_S)

    def _give_up(self, symbol: str, ids: Ids, first_id: int, last_id: int) -> Settle:
        ids.give_up(first_id, last_id)
        ids.changes = {}
        return methodcaller("give_up", symbol, first_id, last_id)

    def _cutoff_us(self) -> int:
        """Trades before it are too old: by the exchange's clock and by the local one. If one of
        them is wrong, or a trade's time is absurd, nothing is given up that can be had."""
        newest_us = max((ids.newest_us for ids in self._seen.symbols.values()), default=0)
        return min(newest_us, int(self._wall() * 1e6)) - self._max_age_us

    def _wish(self, symbol: str, now_s: float) -> tuple[PageRequest, bool] | None:
        """The request for a symbol's first hole that is due, and for those behind it that the
        same page can show."""
        ids = self._seen.symbols[symbol]
        due = [hole for hole in ids.open_holes() if hole.due_s <= now_s]
        if not due:
            return None
        hole = due[0]
        since_us = hole.before.time_us if hole.before else ids.epoch_us
        since_us = self._since_us.get((symbol, hole.last_id), since_us)
        cutoff_us = self._cutoff_us()
        aged = since_us < cutoff_us
        since_us = max(since_us, cutoff_us)
        first_id = max(0, hole.first_id - 1)
        rows = self._rows
        if self._exchange.pages_by_id:
            aged = False
            # Of a large hole the newest first: there is where its age is known.
            first_id = max(first_id, hole.last_id + 2 - rows)
            last_id = max(h.last_id for h in due if h.last_id + 2 - first_id <= rows)
            rows = last_id + 2 - first_id
        return PageRequest(symbol, first_id, since_us, rows, False), aged

    def _send(self, symbol: str, wish: tuple[PageRequest, bool] | None, now_s: float) -> bool:
        """Asks, and puts the symbol behind the others; False: not now."""
        due_s = self._due.pop(symbol)
        if wish is None:
            self._seen.touched.add(symbol)
            return True
        if not self._ask(wish[0]):
            self._due[symbol] = now_s + GRACE_S
            return False
        self._due[symbol] = due_s
        edge = self._seen.symbols[symbol].last_edge
        self._out[symbol] = _Out(wish[0], now_s + ANSWER_LIMIT_S, edge, wish[1])
        return True

    def _look(self, symbol: str, now_s: float) -> bool:
        """Asks for the tail, if no later trade has come, which would have shown what is missing;
        False: not now."""
        tail = self._tails[symbol]
        ids = self._seen.symbols[symbol]
        if ids.last_id != tail.last_id:
            del self._tails[symbol]
            return True
        edge = ids.last_edge
        wish = PageRequest(symbol, edge.trade_id, edge.time_us, self._rows, True)
        if not self._ask(wish):
            tail.due_s = now_s + GRACE_S
            return False
        self._out[symbol] = _Out(wish, now_s + ANSWER_LIMIT_S, edge, False)
        return True

    def _lost(self, symbol: str) -> None:
        """No answer will come any more."""
        self._in_vain(self._out.pop(symbol))

    def _in_vain(self, out: _Out, passing: bool = False) -> None:
        wish = out.wish
        now_s = self._clock()
        more = 0 if passing else 1
        if wish.tail:
            tail = self._tails.get(wish.symbol)
            if tail is not None:
                tail.tries += more
                tail.due_s = now_s + _backoff_s(tail.tries)
            return
        for hole in self._asked(out):
            self._try_later(wish.symbol, hole, hole.tries + more, now_s)
        self._seen.touched.add(wish.symbol)

    def _try_later(self, symbol: str, hole: Hole, tries: int, now_s: float) -> None:
        """It was asked for in vain, so often by now."""
        hole.due_s = now_s + _backoff_s(tries)
        if tries != hole.tries:
            hole.tries = tries
            self._settled.append(methodcaller("tried", symbol, hole.first_id, hole.last_id, tries))

    def _asked(self, out: _Out) -> list[Hole]:
        """The open holes that a request was for."""
        wish = out.wish
        ids = self._seen.symbols[wish.symbol]
        last_id = wish.first_id + (wish.rows if self._exchange.pages_by_id else 1)
        return [h for h in ids.holes_within(wish.first_id, last_id) if h.state is State.OPEN]

    # --- answers

    def wanted(self, wish: PageRequest, decoded: Decoded) -> Wanted:
        """What of a page is missing; to be followed by `Seen.admit` and `take`."""
        ids = self._seen.symbols.get(wish.symbol)
        trades = decoded.trades
        if ids is None:
            return Wanted((), "nothing is known of its symbol")
        if not trades:
            return Wanted((), "")
        out = self._out.get(wish.symbol)
        edge = out.edge if out is not None else ids.last_edge
        if flaw := self._flaw(ids, wish, trades, edge):
            return Wanted((), flaw)
        tail = wish.tail and wish.symbol not in self._left
        return Wanted([t for t in trades if self._is_wanted(ids, t.trade_id, tail)], "")

    @staticmethod
    def _is_wanted(ids: Ids, trade_id: int, tail: bool) -> bool:
        """Whether it is missing, and not given up."""
        if trade_id > ids.last_id:
            return tail
        hole = ids.hole_of(trade_id)
        return hole is not None and hole.state is not State.BEYOND

    def _flaw(self, ids: Ids, wish: PageRequest, trades: Sequence[Trade], edge: Edge) -> str:
        """Why a page can't be what was asked for; empty if it can."""
        last_id = -1
        for trade in trades:
            if trade.symbol != wish.symbol:
                return f"it shows trades of {trade.symbol!r}"
            if trade.trade_id <= last_id:
                return f"its ids do not rise: {last_id} comes before {trade.trade_id}"
            last_id = trade.trade_id
        if self._exchange.pages_by_id and trades[0].trade_id < wish.first_id:
            return f"it begins at id {trades[0].trade_id}, before the {wish.first_id} asked for"
        known = {edge.trade_id: edge, ids.last_id: ids.last_edge}
        for hole in ids.holes_within(trades[0].trade_id - 1, last_id + 1):
            known.update((e.trade_id, e) for e in (hole.before, hole.after) if e is not None)
        matched = 0
        for trade in trades:
            edge_there = known.get(trade.trade_id)
            if edge_there is None or edge_there.mark == UNKNOWN:
                continue
            if not _same(trade, edge_there):
                return f"its trade {trade.trade_id} is another than the one that is known"
            matched += 1
        if not matched and not self._beyond_proof(ids.hole_of(wish.first_id + 1), wish, last_id):
            return "it shows no trade that is known"
        return ""

    def _beyond_proof(self, asked: Hole | None, wish: PageRequest, last_id: int) -> bool:
        """Whether a page up to that id can't show a known trade beside the hole: its edges are
        not known; or, by time, it begins behind the one and ends before the other. Pages by time
        name their market (`Exchange.is_page_of`)."""
        if asked is None:
            return False
        before, after = asked.before, asked.after
        if self._exchange.pages_by_id:
            return not _known(before) and not _known(after)
        begins_behind = before is None or not _known(before) or wish.since_us > before.time_us
        return begins_behind and (after is None or not _known(after) or last_id < after.trade_id)

    def take(
        self, wish: PageRequest, decoded: Decoded, flaw: str, admitted: int, now_us: int
    ) -> list[Settle]:
        """A page has come and what was wanted of it is admitted; what the ledger is to be told.

        :param admitted: how many trades it brought.
        """
        symbol = wish.symbol
        out = self._out.get(symbol)
        if out is not None and out.wish.first_id == wish.first_id and out.wish.tail == wish.tail:
            del self._out[symbol]
        else:
            out = None
        ids = self._seen.symbols.get(symbol)
        if ids is None:
            return []
        self._seen.touched.add(symbol)
        if flaw or not decoded.trades:
            if out is not None:
                self._in_vain(out)
            return []
        settled = self._prove(symbol, ids, decoded, now_us)
        settled += self._age(symbol, ids, decoded.trades, out)
        now_s = self._clock()
        if wish.tail:
            self._looked(symbol, ids, decoded.trades, len(decoded.trades) >= wish.rows, now_s)
        for hole in self._asked(out) if out is not None and not wish.tail else ():
            if self._is_off(symbol, hole, wish, decoded.trades):
                hole.due_s = now_s
            elif hole.proofs:
                hole.due_s = now_s + self._confirm_after_s
            elif admitted:
                hole.due_s = now_s
            else:
                self._try_later(symbol, hole, hole.tries + 1, now_s)
        ids.changes = {}
        return settled

    def _is_off(self, symbol: str, hole: Hole, wish: PageRequest, trades: Sequence[Trade]) -> bool:
        """Whether a page by time lies before the hole, or behind its beginning: the next one
        begins nearer to it."""
        first, last = trades[0], trades[-1]
        if self._exchange.pages_by_id:
            return False
        if last.trade_id < hole.first_id and last.time_us > wish.since_us:
            since_us = last.time_us
        elif first.trade_id > hole.first_id:
            # Twice as far from what it has shown.
            since_us = wish.since_us - (first.time_us - wish.since_us) - _STEP_BACK_US
        else:
            return False
        if len(self._since_us) >= _MAX_SINCE:
            self._since_us.clear()
        self._since_us[symbol, hole.last_id] = since_us
        return True

    def _prove(self, symbol: str, ids: Ids, decoded: Decoded, now_us: int) -> list[Settle]:
        """What is missing between a page's rows, REST does not have either."""
        if decoded.problems:
            return []
        first_id, last_id = decoded.trades[0].trade_id, decoded.trades[-1].trade_id
        settled: list[Settle] = []
        confirm_after_us = int(self._confirm_after_s * 1e6)
        for hole in ids.holes_within(first_id + 1, last_id - 1):
            first, last = max(hole.first_id, first_id + 1), min(hole.last_id, last_id - 1)
            if hole.state is State.OPEN and first <= last:
                ids.prove(first, last, now_us, confirm_after_us)
                settled.append(methodcaller("prove", symbol, first, last, now_us, confirm_after_us))
        for hole in ids.holes_within(first_id + 1, last_id - 1):
            if hole.state is State.OPEN and hole.proofs:
                hole.due_s = self._clock() + self._confirm_after_s
        return settled

    def _age(
        self, symbol: str, ids: Ids, trades: Sequence[Trade], out: _Out | None
    ) -> list[Settle]:
        """What of the hole is too old, now that a page has shown how old its rows are."""
        first = trades[0]
        old = first.time_us < self._cutoff_us() if self._exchange.pages_by_id else False
        old |= out is not None and out.aged
        hole = ids.hole_of(first.trade_id - 1) if old else None
        if hole is None or hole.state is not State.OPEN:
            return []
        return [self._give_up(symbol, ids, hole.first_id, first.trade_id - 1)]

    def _looked(
        self, symbol: str, ids: Ids, trades: Sequence[Trade], full: bool, now_s: float
    ) -> None:
        """The tail was shown."""
        tail = self._tails.get(symbol)
        if tail is None:
            return
        tail.last_id = ids.last_id
        tail.tries = 0
        if full:
            tail.due_s = now_s
            if trades[-1].time_us < self._cutoff_us():
                # It begins too long ago: the next trade of the stream makes a hole of it.
                del self._tails[symbol]
            return
        tail.looks += 1
        if tail.looks < len(TAIL_WAITS_S):
            tail.due_s = now_s + TAIL_WAITS_S[tail.looks]
        else:
            del self._tails[symbol]

    # --- counting

    def _count(self, symbol: str, ids: Ids) -> None:
        """Keeps the totals over all symbols."""
        holes = trades = absent = beyond = 0
        for hole in ids.holes:
            if hole.state is State.OPEN:
                holes += 1
                trades += hole.size
            elif hole.state is State.ABSENT:
                absent += hole.size
            else:
                beyond += hole.size
        before = self._counts.get(symbol, (0, 0, 0, 0))
        self.open_holes += holes - before[0]
        self.open_trades += trades - before[1]
        self.absent += absent - before[2]
        self.beyond += beyond - before[3]
        self._counts[symbol] = (holes, trades, absent, beyond)


def _backoff_s(tries: int) -> float:
    return min(FIRST_RETRY_S * 2.0 ** min(tries - 1, 30), RETRY_CAP_S)


def _same(trade: Trade, edge: Edge) -> bool:
    """Whether a trade of a page is the known one."""
    return abs(trade.time_us - edge.time_us) <= _TIME_TOLERANCE_US and mark_of(trade) == edge.mark


def _known(edge: Edge | None) -> bool:
    return edge is not None and edge.mark != UNKNOWN
