"""A hole: ids of a symbol that are missing, and the trades beside it by which a page is known."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from feedmono.trade import Trade


class State(IntEnum):
    """Of a hole."""

    OPEN = 0
    """To be filled."""
    ABSENT = 1
    """The exchange itself does not have these ids. A trade that comes after all still fills it."""
    BEYOND = 2
    """Not asked for: too old, or too many. A trade that comes after all still fills it."""


UNKNOWN = -1
"""The mark of a trade of which only the time is known, roughly."""


class Edge(NamedTuple):
    """A known trade beside a hole: a page that is to fill the hole must show the same."""

    trade_id: int
    time_us: int
    mark: int
    """`mark_of` its figures."""


def mark_of(trade: Trade) -> int:
    """A number that tells two trades apart by price, quantity and side, however an exchange
    writes its decimals (``2688.30`` on the stream, ``2688.30000`` by REST)."""
    return crc32(f"{_plain(trade.price)} {_plain(trade.quantity)} {trade.side}".encode())


def edge_of(trade: Trade) -> Edge:
    """*trade* as the neighbour of a hole."""
    return Edge(trade.trade_id, trade.time_us, mark_of(trade))


def _plain(text: str) -> str:
    if "." in text and "e" not in text and "E" not in text:
        return text.rstrip("0").rstrip(".")
    try:
        return f"{Decimal(text).normalize():f}"
    except InvalidOperation:
        return text


class Hole:
    """Ids that are missing, *first_id* to *last_id*, both included."""

    __slots__ = (
        "after",
        "before",
        "cause",
        "due_s",
        "first_id",
        "last_id",
        "opened_us",
        "proofs",
        "proved_us",
        "state",
        "tries",
    )

    def __init__(
        self,
        first_id: int,
        last_id: int,
        cause: str,
        opened_us: int,
        before: Edge | None = None,
        after: Edge | None = None,
        state: State = State.OPEN,
    ) -> None:
        self.first_id = first_id
        self.last_id = last_id
        self.cause = cause
        self.opened_us = opened_us
        """When it was found, Unix time in microseconds of the local clock."""
        self.before = before
        """The trade with the id before, if it is known."""
        self.after = after
        """The trade with the id after, if it is known."""
        self.state = state
        self.tries = 0
        """How often it was asked for in vain since it last changed."""
        self.proofs = 0
        """How often REST has shown ids on both sides of it and none of it."""
        self.proved_us = 0
        """When it did so first, as `opened_us`."""
        self.due_s = 0.0
        """When it is to be asked for next, by whoever asks; 0: not considered yet."""

    @property
    def size(self) -> int:
        return self.last_id - self.first_id + 1

    def part(self, first_id: int, last_id: int) -> Hole:
        """A piece of it, as another hole; what is known of its edges stays with it."""
        piece = Hole(first_id, last_id, self.cause, self.opened_us, state=self.state)
        if first_id == self.first_id:
            piece.before = self.before
        if last_id == self.last_id:
            piece.after = self.after
        piece.tries, piece.proofs, piece.proved_us = self.tries, self.proofs, self.proved_us
        piece.due_s = self.due_s
        return piece

    def copy(self) -> Hole:
        """As it is now."""
        return self.part(self.first_id, self.last_id)

    def continues(self, other: Hole) -> bool:
        """Whether both mean the same: open ones, that they were proved as often and since."""
        if self.state is not other.state:
            return False
        one, two = ((h.cause, h.proofs, h.proved_us) for h in (self, other))
        return one == two or self.state is not State.OPEN
