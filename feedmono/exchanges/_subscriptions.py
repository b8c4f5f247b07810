"""Subscriptions on their way: cut into requests, paced, repeated when unanswered, given up.

Every exchange's session needs the same: send requests no faster than allowed, remember which
symbols each asked for, ask again when no answer comes, stop asking some day; and, when other
symbols are wanted, end some subscriptions and begin others. What an answer looks like, and what
it says, is the session's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feedmono.exchanges.base import Event, Refused, Subscribed, Unanswered, Unsubscribed

ANSWER_WAIT_S = 10.0
"""How long a request may stay unanswered before it is repeated."""
MAX_REPEATS = 3
"""How often a request is repeated before its symbols are given up."""


class Request(NamedTuple):
    """Symbols that one message is about."""

    id: int
    """1 … , unique in its connection; a repeated request keeps it."""
    symbols: tuple[str, ...]
    joins: bool
    """Whether it subscribes; else it unsubscribes."""


@dataclass(slots=True)
class _Open:
    """A request with symbols that have no answer yet."""

    symbols: list[str]
    joins: bool
    due_s: float
    """When it is to be sent or, once sent, when its answer is overdue."""
    sent: bool = False
    repeats: int = 0


class Subscriptions:
    """What one connection is subscribed to, on the way to what it is to be subscribed to.

    A symbol is in one request at a time. What is wanted of it may have changed when the answer
    comes, or does not come: then the opposite is asked for next, so that however often it
    changes, the end is right. All times are seconds of the caller's clock.
    """

    def __init__(self, symbols: Sequence[str], per_request: int, interval_s: float) -> None:
        """:param per_request: how many symbols one message asks for at most.
        :param interval_s: the shortest time between two messages.
        """
        self._per_request = per_request
        self._interval_s = interval_s
        self._free_s = 0.0
        self._wanted: dict[str, None] = {}
        self._held: set[str] = set()
        """Subscribed, as far as is known."""
        self._unsure: set[str] = set()
        """Subscribed or not: what was asked last was not answered."""
        self._refused: set[str] = set()
        self._todo: dict[str, bool] = {}
        """Symbols in no request that are to be subscribed (True) or unsubscribed."""
        self._open: dict[int, _Open] = {}
        self._request_of: dict[str, int] = {}
        self._last_id = 0
        self.change(symbols)

    def change(self, symbols: Sequence[str]) -> None:
        """From now on these symbols are wanted, and no others."""
        before, self._wanted = self._wanted, dict.fromkeys(symbols)
        self._refused &= self._wanted.keys()
        # Those that go first: they make room for the others.
        for symbol in [s for s in before if s not in self._wanted]:
            self._review(symbol)
        for symbol in self._wanted:
            self._review(symbol)

    def _review(self, symbol: str) -> None:
        """Notes what is to be done about a symbol."""
        if symbol in self._request_of:
            return
        wanted, held = symbol in self._wanted, symbol in self._held
        if wanted != held and symbol not in self._refused:
            self._todo[symbol] = wanted
        elif not wanted and symbol in self._unsure:
            self._todo[symbol] = False
        else:
            self._todo.pop(symbol, None)

    def _add(self, symbols: list[str], joins: bool, due_s: float) -> int:
        self._last_id += 1
        self._open[self._last_id] = _Open(symbols, joins, due_s)
        self._request_of.update(dict.fromkeys(symbols, self._last_id))
        return self._last_id

    @property
    def pending(self) -> frozenset[str]:
        """The wanted symbols without an answer, those given up included."""
        return frozenset(self._wanted.keys() - self._held - self._refused)

    def due(self, now_s: float) -> Request | None:
        """The request that is to be sent now; taken as sent by this call."""
        if now_s < self._free_s:
            return None
        again = (i for i, r in self._open.items() if not r.sent and r.due_s <= now_s)
        request_id = next(again, None)
        if request_id is None:
            if not self._todo:
                return None
            request_id = self._next(now_s)
        request = self._open[request_id]
        request.sent = True
        request.due_s = now_s + ANSWER_WAIT_S
        self._free_s = now_s + self._interval_s
        return Request(request_id, tuple(request.symbols), request.joins)

    def _next(self, now_s: float) -> int:
        """A new request, about the symbols that wait the longest."""
        joins = next(iter(self._todo.values()))
        symbols = [s for s, each in self._todo.items() if each == joins][: self._per_request]
        for symbol in symbols:
            del self._todo[symbol]
        self._unsure.difference_update(symbols)
        if not joins:
            self._held.difference_update(symbols)
        return self._add(symbols, joins, now_s)

    def keep_distance(self, now_s: float) -> None:
        """Another message than a request was sent: the next request waits its time."""
        self._free_s = max(self._free_s, now_s + self._interval_s)

    def expire(self, now_s: float) -> tuple[Event, ...]:
        """Has overdue requests repeated; tells which symbols were given up, each once. Those that
        were to be unsubscribed count as if they were."""
        unanswered: list[str] = []
        events: list[Event] = []
        for request_id, request in list(self._open.items()):
            if not request.sent or now_s < request.due_s:
                continue
            self._turn_back(request)
            if request.symbols and request.repeats < MAX_REPEATS:
                request.repeats += 1
                request.sent = False
                continue
            if request.joins:
                unanswered += request.symbols
            else:
                events += map(Unsubscribed, request.symbols)
            for symbol in request.symbols:
                del self._request_of[symbol]
            del self._open[request_id]
        if unanswered:
            events.append(Unanswered(tuple(unanswered)))
        return tuple(events)

    def _turn_back(self, request: _Open) -> None:
        """Of an unanswered request, has the opposite asked for the symbols of which it is wanted
        by now: the exchange may have done what it did not answer."""
        changed = [s for s in request.symbols if (s in self._wanted) != request.joins]
        request.symbols = [s for s in request.symbols if s not in set(changed)]
        for symbol in changed:
            del self._request_of[symbol]
            self._unsure.add(symbol)
            self._review(symbol)

    def next_s(self) -> float:
        """When `due` or `expire` has something to do at the latest; ``math.inf`` for never."""
        due_s = self._free_s if self._todo else math.inf
        opens = self._open.values()
        return min(
            due_s, *(r.due_s if r.sent else max(r.due_s, self._free_s) for r in opens), math.inf
        )

    def issued(self, request_id: object) -> bool:
        """Whether a request ever had this id."""
        return type(request_id) is int and 0 < request_id <= self._last_id

    def joins(self, request_id: int) -> bool:
        """Whether an open request subscribes; else it unsubscribes."""
        return self._open[request_id].joins

    def of(self, request_id: object) -> tuple[str, ...]:
        """The symbols of a request that have no answer yet; none if there is no such request."""
        request = self._open.get(request_id) if type(request_id) is int else None
        return tuple(request.symbols) if request else ()

    def sent(self) -> tuple[int, ...]:
        """The ids of the requests that wait for an answer."""
        return tuple(request_id for request_id, request in self._open.items() if request.sent)

    def request_of(self, symbol: str) -> int | None:
        """The id of the request that waits for an answer about *symbol*."""
        return self._request_of.get(symbol)

    def settle(self, request_id: int, symbol: str, refusal: str | None = None) -> Event:
        """An answer about one symbol of a request came; gives the event of it. To an unsubscription
        any answer will do: what is refused was no subscription.

        :param refusal: why the exchange refused it, if it did.
        """
        request = self._open[request_id]
        request.symbols.remove(symbol)
        del self._request_of[symbol]
        if request.joins and refusal is None:
            self._held.add(symbol)
        elif request.joins and symbol in self._wanted:
            self._refused.add(symbol)
        if not request.symbols:
            del self._open[request_id]
        self._review(symbol)
        if not request.joins:
            return Unsubscribed(symbol)
        return Subscribed(symbol) if refusal is None else Refused(symbol, refusal)

    def split(self, request_id: int, now_s: float) -> None:
        """Asks again for a request's symbols, in two halves: one of them was refused, and the
        answer did not say which."""
        request = self._open.pop(request_id)
        middle = len(request.symbols) // 2
        self._add(request.symbols[:middle], request.joins, now_s)
        self._add(request.symbols[middle:], request.joins, now_s)

    def postpone(self, request_id: int, now_s: float) -> None:
        """The exchange could not take a request now: it counts as unanswered, to be repeated
        after a wait that doubles each time, and nothing else is sent in the meantime."""
        request = self._open[request_id]
        request.sent = True
        request.due_s = now_s + ANSWER_WAIT_S * 2**request.repeats
        self._free_s = max(self._free_s, request.due_s)
