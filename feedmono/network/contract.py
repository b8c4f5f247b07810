"""What a connection asks of its surroundings: where its frames go, and whom it tells."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from feedmono.counters import Field

AGE, SHUTDOWN, MAINTENANCE = "age", "shutdown", "maintenance"
"""Why a connection is to be replaced."""


class State(IntEnum):
    """What a connection is doing."""

    CONNECTING = 0
    SUBSCRIBING = 1
    """Open; not all symbols are answered, and no data came yet."""
    FLOWING = 2
    WAITING = 3
    """Not connected: backoff, or the exchange's limit of attempts."""
    STOPPED = 4


class Deliver(Protocol):
    """Where frames go: the ring."""

    def __call__(
        self, frames: Sequence[bytes], connection: int, received_ns: int, binary: bool
    ) -> int:
        """Takes whole messages in their order; *received_ns* is Unix time.

        Returns how many it took from the front. Fewer than all: there is no room now; the
        connection keeps the others, stops reading, and asks again some times a second.
        """
        ...


class Report(Protocol):
    """What a connection tells of itself. Called from its thread, on the hot path: must be cheap
    and must not block."""

    def state(self, number: int, state: State) -> None:
        """The state changed."""

    def received(self, number: int, frames: int, size_bytes: int) -> None:
        """One read from the socket: whole messages in it, bytes on the wire (of TLS: inside
        it)."""

    def reconnect(self, number: int, reason: str) -> None:
        """A connection, or an attempt at one, ended without `stop` or `retire`; another will
        follow, unless `make_last` forbids.

        *reason*: ``unreachable``, ``tls``, ``http <status>``, ``handshake``, ``lost``,
        ``closed <code>``, ``silent``, ``stale``, ``unanswered``, ``unsent``, ``too large``,
        ``protocol error``. The state before was `SUBSCRIBING` or `FLOWING` if it was open.
        """

    def aging(self, number: int, reason: str) -> None:
        """The connection will end before long and is to be replaced; it goes on until `retire`.
        Once per connection made. *reason*: `AGE`, `SHUTDOWN`, `MAINTENANCE`."""

    def ready(self, number: int) -> None:
        """Every symbol is answered, and data came or would have come by now: no predecessor is
        needed any more. Once per connection made."""

    def subscribed(self, number: int, symbol: str) -> None:
        """The exchange acknowledged the symbol, on this connection."""

    def unsubscribed(self, number: int, symbol: str) -> None:
        """The symbol's subscription has ended, on this connection; everything that came before
        is delivered."""

    def refused(self, number: int, symbol: str, reason: str) -> None:
        """The exchange refused the symbol, on this connection."""

    def count(self, number: int, field: Field, amount: int = 1) -> None:
        """Adds to a counter: what only a connection sees, and nobody acts upon."""

    def unknown(self, number: int, reason: str) -> None:
        """A message that the exchange is not known to send; it was delivered all the same."""

    def full(self, number: int) -> None:
        """The ring has no room: the socket is not read until `blocked` is told."""

    def blocked(self, number: int, seconds: float) -> None:
        """The ring had no room for so long, and the socket was not read; it is over now."""

    def lost(self, number: int, frames: int) -> None:
        """So many received messages found no room before `stop`: they are gone."""
