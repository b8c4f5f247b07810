"""A share of the symbols and whoever serves it: a connection, replaced before it ends.

    current    flows ─ aging ───────── goes on ─────────┬─ retires: orderly close, drained
    successor          └ connects ─ subscribes ─ ready ─┴─ is the current one

From the successor's first subscription to the old one's last frame both bring the same trades;
who reads the ring drops what it has seen. So nothing is lost in between, and nobody waits. Where
the old one ends too early it does not come back: the successor is all there is, and counts as a
reconnect. A successor that is refused symbols which the old one has does not replace it: both go
on, another successor is tried now and then, and the last one is there when the old one ends.

Which symbols it serves may change at any time: both connections follow, and the next one begins
with them. What a place has subscribed is what the exchange does; what of it is wanted is the
slot's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from feedmono import messages
from feedmono.counters import Field, reconnect_field
from feedmono.log import Log
from feedmono.network.connection import Connection
from feedmono.network.contract import MAINTENANCE, State

MAINTENANCE_INTERVAL_S = 5.0
"""Between two replacements for the exchange's maintenance, as Kraken asks for it."""
RENEW_FIRST_S = 60.0
"""After how long a successor that lacks symbols is replaced by another; doubles with each one."""
RENEW_CAP_S = 3600.0

_MAX_NUMBER = 0xFFFF


class Numbers:
    """The numbers of connections, 16 bits: each is the one after the last, those of running
    connections left out. Not thread-safe."""

    def __init__(self) -> None:
        self._last = -1
        self._in_use: set[int] = set()

    def take(self) -> int:
        """A number that no running connection has."""
        assert len(self._in_use) < _MAX_NUMBER, "connections end"
        while True:
            self._last = (self._last + 1) & _MAX_NUMBER
            if self._last not in self._in_use:
                self._in_use.add(self._last)
                return self._last

    def free(self, number: int) -> None:
        """Its connection has ended."""
        self._in_use.discard(number)


class Owner(Protocol):
    """What slots tell their process. Called with the slots' lock held."""

    def count(self, field: Field, amount: int = 1) -> None:
        """Adds to a counter."""

    def event(self, kind: str, connection: int, **fields: object) -> None:
        """Something that belongs into the ring, see `feedmono.messages`."""

    def changed(self) -> None:
        """What a slot tells of itself (`Slot.is_flowing` …) may have changed."""


Make = Callable[[int, "Slot", float], Connection]
"""A connection of that number for a slot and its symbols, to wait so many seconds before its first
attempt."""
Start = Callable[[Connection], None]
"""Runs a connection in a thread of its own."""


@dataclass(slots=True)
class _Place:
    """A connection that serves a slot, or will."""

    connection: Connection
    state: State = State.STOPPED
    subscribed: set[str] = field(default_factory=set)
    ready: bool = False
    aging: str = ""
    """Why it is to be replaced; empty if it is not."""

    @property
    def is_open(self) -> bool:
        return self.state in (State.SUBSCRIBING, State.FLOWING)


class Slot:
    """Keeps a share of the symbols on one connection at a time, two while they change over.

    It is the `feedmono.network.contract.Report` of its connections, each of which calls it
    from its own thread.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        make: Make,
        start: Start,
        numbers: Numbers,
        owner: Owner,
        lock: threading.RLock,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param lock: shared by all slots of *owner*, and by *numbers*."""
        self.symbols = tuple(symbols)
        """Those that it is to serve; changed by `set_symbols`."""
        self._make = make
        self._start = start
        self._numbers = numbers
        self._owner = owner
        self._lock = lock
        self._log = log
        self._clock = clock
        self._running: dict[int, Connection] = {}
        """Those of the two places, and those that are still saying goodbye."""
        self._current: _Place | None = None
        self._successor: _Place | None = None
        self._stopped = False
        self._retired = False
        self._maintained_s = -math.inf
        # When another successor is to be tried, and how long the next one is waited for.
        self._renew_at_s = math.inf
        self._renew_s = RENEW_FIRST_S
        self._refused: dict[str, str] = {}

    def start(self) -> None:
        """Starts the first connection."""
        with self._lock:
            if not self._stopped:
                self._current = self._place(0.0)

    def stop(self) -> None:
        """Stops every connection, and starts no other one; does not wait for their ends."""
        with self._lock:
            self._stopped = True
            for connection in self._running.values():
                connection.stop()

    # --- What is to be served; for callers that hold the lock.

    def set_symbols(self, symbols: Sequence[str]) -> None:
        """From now on it is to serve these."""
        if (symbols := tuple(symbols)) == self.symbols:
            return
        self.symbols = symbols
        for place in self._places():
            place.connection.set_symbols(symbols)
        # What it lacked may be what is not wanted any more.
        if self._successor is not None and self._successor.ready:
            self._replace_if_able(self._successor)

    def retire(self) -> None:
        """Nothing is to be served any more: its connections end in order, with nothing given up
        that they have received."""
        self._stopped = self._retired = True
        for connection in self._running.values():
            connection.retire()

    @property
    def is_running(self) -> bool:
        """Whether any of its connections has not ended yet."""
        return bool(self._running)

    # --- What it tells; for callers that hold the lock.

    @property
    def is_flowing(self) -> bool:
        """Whether one of its connections is open and subscribed."""
        return any(place.state is State.FLOWING for place in self._places())

    @property
    def served(self) -> Set[str]:
        """Its symbols that the exchange acknowledged on an open connection."""
        return set().union(*(place.subscribed for place in self._places())) & self._wanted

    @property
    def refused_symbols(self) -> Mapping[str, str]:
        """Symbol → why the exchange refused it last, whether or not it is served otherwise."""
        return {s: self._refused[s] for s in self.symbols if s in self._refused}

    @property
    def _wanted(self) -> frozenset[str]:
        return frozenset(self.symbols)

    # --- The succession.

    def _places(self) -> list[_Place]:
        return [place for place in (self._current, self._successor) if place is not None]

    def _of(self, number: int) -> _Place | None:
        """The place of that connection; None if it retires."""
        return next((p for p in self._places() if p.connection.number == number), None)

    def _place(self, delay_s: float) -> _Place:
        """A new connection, started."""
        connection = self._make(self._numbers.take(), self, delay_s)
        self._running[connection.number] = connection
        place = _Place(connection)
        self._start(connection)
        return place

    def _succeed(self) -> None:
        """Starts the successor if it is time: the current connection ages, and has proved that
        one like it can be had."""
        current = self._current
        if self._stopped or current is None or self._successor is not None:
            return
        if not current.aging or not current.ready:
            return
        delay_s = 0.0
        if current.aging == MAINTENANCE:
            now = self._clock()
            delay_s = max(0.0, self._maintained_s + MAINTENANCE_INTERVAL_S - now)
            self._maintained_s = now + delay_s
        current.connection.make_last()
        self._successor = self._place(delay_s)

    def aging(self, number: int, reason: str) -> None:
        with self._lock:
            place = self._of(number)
            if place is not None:
                place.aging = reason
                self._succeed()

    def ready(self, number: int) -> None:
        with self._lock:
            place = self._of(number)
            if place is None:
                return
            place.ready = True
            if place is not self._successor:
                self._succeed()
            elif not self._replace_if_able(place):
                self._go_on_with_both(place)

    def _lacking(self, successor: _Place) -> Set[str]:
        """The symbols for which the current connection is still needed."""
        assert self._current is not None, "a successor has a predecessor"
        return (self._current.subscribed - successor.subscribed) & self._wanted

    def _replace_if_able(self, successor: _Place) -> bool:
        """Whether the successor, which is ready, has replaced the current connection."""
        if self._lacking(successor):
            return False
        old = self._current
        assert old is not None, "a successor has a predecessor"
        self._take_over()
        old.connection.retire()
        self._owner.count(Field.ROTATIONS)
        numbers = {"connection": old.connection.number, "successor": successor.connection.number}
        self._log.info("replaced", **numbers)
        self._owner.changed()
        self._succeed()
        return True

    def _take_over(self) -> None:
        """The successor is the current one."""
        self._current, self._successor = self._successor, None
        self._renew_at_s, self._renew_s = math.inf, RENEW_FIRST_S

    def _go_on_with_both(self, successor: _Place) -> None:
        """The old one is still needed."""
        assert self._current is not None, "a successor has a predecessor"
        self._renew_at_s = self._clock() + self._renew_s
        self._log.warning(
            "not replaced: the successor lacks symbols",
            connection=self._current.connection.number,
            successor=successor.connection.number,
            symbols=sorted(self._lacking(successor)),
            retry_in_s=self._renew_s,
        )
        self._renew_s = min(2 * self._renew_s, RENEW_CAP_S)

    def _renew(self) -> None:
        """Tries another successor."""
        self._renew_at_s = math.inf
        if self._successor is not None and not self._stopped:
            self._successor.connection.retire()
            self._successor = self._place(0.0)
            self._owner.changed()

    def reconnect(self, number: int, reason: str) -> None:
        with self._lock:
            place = self._of(number)
            if place is None:
                return
            if place.is_open:
                self._owner.event(messages.LOST, connection=number, reason=reason)
            if place is self._successor:
                return
            self._owner.count(Field.RECONNECTS)
            self._owner.count(reconnect_field(reason))
            if self._successor is not None:
                # It does not come back: see `Connection.make_last`.
                self._take_over()
                self._owner.changed()
                self._succeed()

    # --- What else a connection reports.

    def state(self, number: int, state: State) -> None:
        with self._lock:
            place = self._of(number)
            if place is not None:
                place.state = state
                if state is State.SUBSCRIBING:
                    self._owner.event(messages.CONNECTED, connection=number)
                if not place.is_open:
                    if self._retired:
                        for symbol in place.subscribed:
                            self._tell(messages.UNSUBSCRIBED, number, symbol)
                    place.subscribed.clear()
                    place.ready = False
                    place.aging = ""
                self._owner.changed()
            if state is State.STOPPED:
                self._running.pop(number, None)
                self._numbers.free(number)

    def subscribed(self, number: int, symbol: str) -> None:
        with self._lock:
            place = self._of(number)
            if place is not None:
                place.subscribed.add(symbol)
                self._refused.pop(symbol, None)
                self._tell(messages.SUBSCRIBED, number, symbol)
                self._owner.changed()
                # One that was ordered while the successor got ready is answered only now.
                if place is self._successor and place.ready and not self._stopped:
                    self._replace_if_able(place)

    def unsubscribed(self, number: int, symbol: str) -> None:
        with self._lock:
            place = self._of(number)
            if place is not None:
                place.subscribed.discard(symbol)
                self._tell(messages.UNSUBSCRIBED, number, symbol)
                self._owner.changed()

    def _tell(self, kind: str, number: int, symbol: str) -> None:
        self._owner.event(kind, connection=number, symbol=symbol)

    def refused(self, number: int, symbol: str, reason: str) -> None:
        with self._lock:
            if self._of(number) is not None:
                self._refused[symbol] = reason
                self._owner.changed()

    def received(self, number: int, frames: int, size_bytes: int) -> None:
        with self._lock:
            self._owner.count(Field.BYTES, size_bytes)
            # Something always comes: it keeps the time.
            if self._renew_at_s < math.inf and self._clock() >= self._renew_at_s:
                self._renew()

    def count(self, number: int, field: Field, amount: int = 1) -> None:
        with self._lock:
            self._owner.count(field, amount)

    def unknown(self, number: int, reason: str) -> None:
        self.count(number, Field.UNKNOWN_MESSAGES)

    def full(self, number: int) -> None:
        with self._lock:
            self._owner.count(Field.RING_FULL)
            self._owner.event(messages.FULL, connection=number)

    def blocked(self, number: int, seconds: float) -> None:
        with self._lock:
            self._owner.event(messages.ROOM, connection=number, seconds=round(seconds, 3))

    def lost(self, number: int, frames: int) -> None:
        self.count(number, Field.LOST_FRAMES, frames)
