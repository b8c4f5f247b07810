"""Subscriptions on their way: cut into requests, paced, repeated when unanswered, given up.

Every exchange's session needs the same: send requests no faster than allowed, remember which
symbols each asked for, ask again when no answer comes, stop asking some day. What an answer
looks like, and what it means, is the session's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ANSWER_WAIT_S = 10.0
"""How long a request may stay unanswered before it is repeated."""
MAX_REPEATS = 3
"""How often a request is repeated before its symbols are given up."""


class Request(NamedTuple):
    """Subscriptions that are to be asked for in one message."""

    id: int
    """1 … , unique in its connection; a repeated request keeps it."""
    symbols: tuple[str, ...]


@dataclass(slots=True)
class _Open:
    """A request with symbols that have no answer yet."""

    symbols: list[str]
    due_s: float
    """When it is to be sent or, once sent, when its answer is overdue."""
    sent: bool = False
    repeats: int = 0


class Subscriptions:
    """The subscriptions of one connection that are neither acknowledged nor refused.

    A symbol is in one request at a time. All times are seconds of the caller's clock.
    """

    def __init__(self, symbols: Sequence[str], per_request: int, interval_s: float) -> None:
        """:param per_request: how many symbols one message asks for at most.
        :param interval_s: the shortest time between two messages.
        """
        distinct = list(dict.fromkeys(symbols))
        self._interval_s = interval_s
        self._free_s = 0.0
        self._pending = set(distinct)
        self._open: dict[int, _Open] = {}
        self._last_id = 0
        for start in range(0, len(distinct), per_request):
            self._add(distinct[start : start + per_request], 0.0)

    def _add(self, symbols: list[str], due_s: float) -> None:
        self._last_id += 1
        self._open[self._last_id] = _Open(symbols, due_s)

    @property
    def pending(self) -> frozenset[str]:
        """The symbols without an answer, those given up included."""
        return frozenset(self._pending)

    def due(self, now_s: float) -> Request | None:
        """The request that is to be sent now; taken as sent by this call."""
        if now_s < self._free_s:
            return None
        for request_id, request in self._open.items():
            if not request.sent and request.due_s <= now_s:
                request.sent = True
                request.due_s = now_s + ANSWER_WAIT_S
                self._free_s = now_s + self._interval_s
                return Request(request_id, tuple(request.symbols))
        return None

    def keep_distance(self, now_s: float) -> None:
        """Another message than a request was sent: the next request waits its time."""
        self._free_s = max(self._free_s, now_s + self._interval_s)

    def expire(self, now_s: float) -> tuple[str, ...]:
        """Has overdue requests repeated; gives the symbols that were given up, each once."""
        given_up: list[str] = []
        for request_id, request in list(self._open.items()):
            if not request.sent or now_s < request.due_s:
                continue
            if request.repeats == MAX_REPEATS:
                given_up += request.symbols
                del self._open[request_id]
            else:
                request.repeats += 1
                request.sent = False
        return tuple(given_up)

    def next_s(self) -> float:
        """When `due` or `expire` has something to do at the latest; ``math.inf`` for never."""
        return min(
            (r.due_s if r.sent else max(r.due_s, self._free_s) for r in self._open.values()),
            default=math.inf,
        )

    def issued(self, request_id: object) -> bool:
        """Whether a request ever had this id."""
        return type(request_id) is int and 0 < request_id <= self._last_id

    def of(self, request_id: object) -> tuple[str, ...]:
        """The symbols of a request that have no answer yet; none if there is no such request."""
        request = self._open.get(request_id) if type(request_id) is int else None
        return tuple(request.symbols) if request else ()

    def sent(self) -> tuple[int, ...]:
        """The ids of the requests that wait for an answer."""
        return tuple(request_id for request_id, request in self._open.items() if request.sent)

    def request_of(self, symbol: str) -> int | None:
        """The id of the request that waits for an answer about *symbol*."""
        return next((i for i, request in self._open.items() if symbol in request.symbols), None)

    def settle(self, request_id: int, symbol: str) -> None:
        """An answer about one symbol of a request came, for good or ill."""
        request = self._open[request_id]
        request.symbols.remove(symbol)
        self._pending.discard(symbol)
        if not request.symbols:
            del self._open[request_id]

    def split(self, request_id: int, now_s: float) -> None:
        """Asks again for a request's symbols, in two halves: one of them was refused, and the
        answer did not say which."""
        symbols = self._open.pop(request_id).symbols
        middle = len(symbols) // 2
        self._add(symbols[:middle], now_s)
        self._add(symbols[middle:], now_s)

    def postpone(self, request_id: int, now_s: float) -> None:
        """The exchange could not take a request now: it counts as unanswered, to be repeated
        after a wait that doubles each time, and nothing else is sent in the meantime."""
        request = self._open[request_id]
        request.sent = True
        request.due_s = now_s + ANSWER_WAIT_S * 2**request.repeats
        self._free_s = max(self._free_s, request.due_s)
