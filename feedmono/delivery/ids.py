"""Which ids of a symbol there are, and which are missing: the arithmetic of the ledger.

An exchange numbers a symbol's trades one by one, so what is there is nearly always one range with
a few holes in it. `Ids` keeps exactly that, however many trades there were: the first id, the
last, and the holes between. It knows a trade that it has already, and opens a hole where ids jump.
Nothing here does I/O or knows a clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from feedmono.delivery.holes import UNKNOWN, Edge, Hole, State, edge_of
from feedmono.trade import BACKFILL, MAX_TRADE_ID, STREAM, Trade

EPOCH_US = 1_000_000
"""How much newer than everything known a trade with an old id must be to begin a new epoch."""
FAR = 1_000_000
"""A jump above it is believed only when a second trade confirms it."""
NEAR = 1000
"""How far below the first id a late trade may be and still extend the range downwards."""
MAX_ISLANDS = 100
"""How many ids far from the range a symbol may have."""
MAX_ANEW = 100
"""How many trades that may be of a new epoch, or are of the old one, are remembered."""
MAX_HOLES = 10_000
"""How many holes a symbol may have. With one more, the oldest that is settled is *folded* (the
oldest of all if none is): only its size is remembered, and a trade that comes to fill it after
all is taken for a repeat."""


def _as_edge(trade: Trade | Edge) -> Edge:
    return trade if isinstance(trade, Edge) else edge_of(trade)


def _follows(trade: Trade | Edge, first: Trade | Edge) -> bool:
    """Whether it can be of the epoch that another begins: it may be a little older."""
    near = 0 < trade.trade_id - first.trade_id <= FAR
    return near and trade.time_us > first.time_us - EPOCH_US


class Outcome(IntEnum):
    """What `Ids.add` found."""

    REPEATED = 0
    """It was there; everything else is new."""
    NEXT = 1
    """It continues the range."""
    FILLED = 2
    """It was missing."""
    JUMPED = 3
    """It is above the last id, and ids between are missing now."""
    FAR = 4
    """It does not fit what is known (too far off, or old but for its time): it is taken for
    itself alone until another confirms it."""
    EPOCH = 5
    """The exchange has begun its ids anew; what was known is forgotten."""


class Fill(NamedTuple):
    """A missing id that came."""

    trade_id: int
    hole: Hole
    """As it was before."""
    origin: int


class Epoch(NamedTuple):
    """What there was of a symbol before its ids began anew."""

    epoch: int
    epoch_us: int
    """The exchange's time of its first trade."""
    first_id: int
    last_id: int
    missing: int
    """How many ids between were missing at its end."""

    @classmethod
    def of(cls, ids: Ids) -> Epoch:
        missing = sum(h.size for h in ids.holes) + ids.folded
        return cls(ids.epoch, ids.epoch_us, ids.first_id, ids.last_id, missing)


class Ids:
    """The ids of one symbol in one epoch. Invariant: *first_id* ≤ *last_id*, holes are in order,
    do not touch each other unless they differ, and lie between the two.

    An id is new if it is above the last or in a hole; but a snapshot's or a page's below the first
    is not: what was before the beginning is not asked for. Two trades whose ids are not new, with
    times at least `EPOCH_US` newer than everything known, begin a new epoch (a relisting, a test
    exchange started again), in whatever order they come; one alone, with the range going on
    behind it, is garbage.
    """

    __slots__ = (
        "_candidate",
        "_open_until",
        "_strays",
        "anew",
        "anew_last_id",
        "backfilled",
        "changes",
        "ended",
        "epoch",
        "epoch_us",
        "fills",
        "first_id",
        "folded",
        "folded_until",
        "found",
        "found_trades",
        "holes",
        "islands",
        "last",
        "last_id",
        "late",
        "newest_us",
        "sequence",
    )

    def __init__(self, first: Trade | Edge, epoch: int = 0) -> None:
        self.backfilled = 0
        """How many missing ids came by REST."""
        self.late = 0
        """How many missing ids came late on the stream."""
        self.found = 0
        """How many holes were found."""
        self.found_trades = 0
        """How many ids were in them."""
        self.fills: list[Fill] = []
        """Missing ids that came, since the caller emptied it."""
        self.ended: list[Epoch] = []
        """Epochs that ended, since the caller emptied it."""
        self.begin(first, epoch)

    def begin(self, first: Trade | Edge, epoch: int) -> None:
        """Forgets everything but this trade."""
        self.epoch = epoch
        self.epoch_us = first.time_us
        """The exchange's time of the first trade of this epoch."""
        self.first_id = first.trade_id
        self.last_id = first.trade_id
        self.last: Trade | Edge = first
        """The trade with the last id."""
        self.newest_us = first.time_us
        """The latest time of a trade whose id was the highest: never lowered."""
        self.sequence = -1
        """The ring sequence of the frame that brought the last id."""
        self.holes: list[Hole] = []
        self.islands: dict[int, None] = {}
        """Ids far from the range, in the order of their coming."""
        self.folded = 0
        """How many ids were in holes that were folded."""
        self.folded_until = first.trade_id
        """Below this id folded holes may be."""
        self._candidate: Trade | None = None
        self.anew: dict[int, Edge] = {}
        """Trades that looked like the first of a new epoch, by id, in the order of their coming."""
        self.anew_last_id = -1
        """The last id then. Once it has moved, the range goes on and no epoch has begun."""
        self._open_until = 0
        """No hole that begins below this id is settled."""
        self._strays: dict[int, int] = {}
        """Times, by id, of trades that were handed on and are not of this epoch."""
        self.changes: dict[int, Hole | None] | None = {}
        """Holes that were opened or changed, by their first id, and those that are gone (None),
        since the caller emptied it; None: everything changed."""

    @property
    def last_edge(self) -> Edge:
        """The trade with the last id, as a neighbour."""
        return _as_edge(self.last)

    def missing(self, state: State = State.OPEN) -> int:
        """How many ids the holes of that state have."""
        return sum(h.size for h in self.holes if h.state is state)

    def open_holes(self) -> Iterator[Hole]:
        """In the order of their ids."""
        return (h for h in self.holes if h.state is State.OPEN)

    def hole_of(self, trade_id: int) -> Hole | None:
        """The hole that an id is missing in."""
        at = self._place(trade_id)
        return self.holes[at] if at >= 0 and trade_id <= self.holes[at].last_id else None

    def holes_within(self, first_id: int, last_id: int) -> list[Hole]:
        """Those that have any of these ids."""
        at = max(0, self._place(first_id))
        found = []
        for hole in self.holes[at:]:
            if hole.first_id > last_id:
                break
            if hole.last_id >= first_id:
                found.append(hole)
        return found

    def knows(self, trade_id: int) -> bool:
        """Whether it is there."""
        if trade_id in self.islands:
            return True
        return self.first_id <= trade_id <= self.last_id and self.hole_of(trade_id) is None

    # --- adding

    def is_next(self, trade: Trade) -> bool:
        """Whether it simply continues the range, as nearly every trade does."""
        return (
            trade.trade_id == self.last_id + 1
            and trade.time_us >= self.epoch_us
            and not self.islands
            and trade.trade_id not in self._strays
        )

    def follow(self, trade: Trade, sequence: int) -> None:
        """Takes what `is_next`, as `add` would."""
        self.last_id = trade.trade_id
        self.last = trade
        self.sequence = sequence
        if trade.time_us > self.newest_us:  # noqa: PLR1730  max() would cost more
            self.newest_us = trade.time_us

    def add(
        self, trade: Trade, origin: int, cause: str, now_us: int, max_trades: int, sequence: int
    ) -> Outcome:
        """Takes a trade in; what it was to what is known.

        :param cause: of a hole that this trade opens.
        :param now_us: Unix time in microseconds of the local clock.
        :param max_trades: of a hole that it opens, so many of the newest ids are `State.OPEN`.
        :param sequence: the ring sequence of its frame.
        """
        trade_id = trade.trade_id
        if self._is_of_the_old(trade, origin):
            if origin != STREAM or self._strays.get(trade_id) == trade.time_us:
                return Outcome.REPEATED
            return self._stray(trade)
        if trade_id > self.last_id:
            outcome = self._add_above(trade, cause, now_us, max_trades)
            if outcome is Outcome.NEXT or outcome is Outcome.JUMPED:
                self.sequence = sequence
            return outcome
        newer = origin != BACKFILL and trade.time_us >= self.newest_us + EPOCH_US
        if newer and self._is_anew(trade_id, trade.time_us):
            # Changes nothing: the ledger is not told of repeats.
            return Outcome.REPEATED
        if newer and (begun := self._confirmed_by(trade)):
            self._begin_anew(begun, cause, now_us, max_trades)
            self.sequence = sequence
            return Outcome.EPOCH
        hole = self.hole_of(trade_id)
        if hole is not None:
            self._candidate = None
            self._fill(hole, trade, origin)
            return Outcome.FILLED
        if newer:
            return self._add_newer(trade)
        if trade_id >= self.first_id or trade_id in self.islands or origin != STREAM:
            # A repeat denies no candidate: the ledger, which must find the same, never sees one.
            return Outcome.REPEATED
        self._candidate = None
        if self.first_id - trade_id > NEAR:
            self._strand(trade_id)
            return Outcome.FAR
        below = self.first_id - 1
        self.first_id = trade_id
        if trade_id < below:
            hole = Hole(trade_id + 1, below, cause, now_us, edge_of(trade))
            landed = self._landed(trade_id + 1, below)
            self._found(hole.size - len(landed))
            self._insert(0, hole)
            self._cut_out_landed(landed)
            self._tidy(trade_id, below)
        return Outcome.NEXT

    def _is_of_the_old(self, trade: Trade, origin: int) -> bool:
        """Whether it is of the epoch before, or was no trade of this one when that began, and
        would change what is known. A page fills what was asked for, whatever its times."""
        trade_id = trade.trade_id
        if trade_id <= self.last_id and (
            origin == BACKFILL or (trade_id >= self.first_id and self.hole_of(trade_id) is None)
        ):
            return False
        old = self.epoch > 0 and trade.time_us <= self.epoch_us - EPOCH_US
        return old or self._strays.get(trade_id) == trade.time_us

    def _stray(self, trade: Trade | Edge) -> Outcome:
        """It is handed on, and none of this epoch."""
        self._strays[trade.trade_id] = trade.time_us
        _bound(self._strays)
        return Outcome.FAR

    def _confirmed_by(self, trade: Trade) -> list[Trade | Edge]:
        """The trades of the epoch that, as this one shows, has begun, in the order of their ids;
        none if it shows that of none. Ids of the new epoch may run into holes of the old one:
        this one may be missing there."""
        if self.anew_last_id != self.last_id:
            return []
        begun: list[Trade | Edge] = [trade]
        for trade_id in sorted(self.anew):
            if _follows(self.anew[trade_id], begun[-1]):
                begun.append(self.anew[trade_id])
        for trade_id in sorted(self.anew, reverse=True):
            if _follows(begun[0], self.anew[trade_id]):
                begun.insert(0, self.anew[trade_id])
        return begun if len(begun) > 1 else []

    def _begin_anew(
        self, begun: list[Trade | Edge], cause: str, now_us: int, max_trades: int
    ) -> None:
        """Ends the epoch: these are the first trades of the next one."""
        self.ended.append(Epoch.of(self))
        ids = {trade.trade_id for trade in begun}
        others = [edge for edge in self.anew.values() if edge.trade_id not in ids]
        self.begin(begun[0], self.epoch + 1)
        self.changes = None
        for trade in begun[1:]:
            self._advance(trade, cause, now_us, max_trades)
        for edge in others:
            self._stray(edge)

    def _add_newer(self, trade: Trade) -> Outcome:
        """Takes an old id with a new time for one of a new epoch, to be confirmed."""
        if self.anew_last_id != self.last_id:
            self.anew = {}
            self.anew_last_id = self.last_id
        self.anew.pop(trade.trade_id, None)
        self.anew[trade.trade_id] = edge_of(trade)
        _bound(self.anew)
        if trade.trade_id < self.first_id:
            self._strand(trade.trade_id)
        return Outcome.FAR

    def _is_anew(self, trade_id: int, time_us: int) -> bool:
        edge = self.anew.get(trade_id)
        return edge is not None and edge.time_us == time_us

    def _add_above(self, trade: Trade, cause: str, now_us: int, max_trades: int) -> Outcome:
        trade_id = trade.trade_id
        if trade_id in self.islands:
            return Outcome.REPEATED
        jumped = False
        if trade_id - self.last_id > FAR:
            candidate = self._candidate
            if candidate is None or not 0 < trade_id - candidate.trade_id <= FAR:
                self._candidate = trade
                self._strand(trade_id)
                return Outcome.FAR
            self._advance(candidate, cause, now_us, max_trades)
            jumped = True
        self._candidate = None
        jumped |= self._advance(trade, cause, now_us, max_trades)
        return Outcome.JUMPED if jumped else Outcome.NEXT

    def _advance(self, trade: Trade | Edge, cause: str, now_us: int, max_trades: int) -> bool:
        """Makes it the last one; whether that left a hole."""
        first, last = self.last_id + 1, trade.trade_id - 1
        jumped = False
        if first <= last:
            hole = Hole(first, last, cause, now_us, self.last_edge, _as_edge(trade))
            self.islands.pop(trade.trade_id, None)
            landed = self._landed(first, last)
            self._found(hole.size - len(landed))
            jumped = hole.size > len(landed)
            if hole.size > max_trades:
                cut = last - max_trades
                old = hole.part(first, cut)
                old.state = State.BEYOND
                self._insert(len(self.holes), old)
                if cut < last:
                    new = hole.part(cut + 1, last)
                    new.before = Edge(cut, self._time_between(hole, cut), UNKNOWN)
                    self._insert(len(self.holes), new)
            else:
                self._insert(len(self.holes), hole)
            self._cut_out_landed(landed)
            self._tidy(first, last)
        self.last_id = trade.trade_id
        self.last = trade
        self.newest_us = max(self.newest_us, trade.time_us)
        return jumped

    @staticmethod
    def _time_between(hole: Hole, trade_id: int) -> int:
        """About when a missing trade was made, as if they had come evenly."""
        assert hole.before is not None
        assert hole.after is not None
        span_us = hole.after.time_us - hole.before.time_us
        return hole.before.time_us + span_us * (trade_id - hole.first_id) // hole.size

    def _strand(self, trade_id: int) -> None:
        self.islands[trade_id] = None
        if len(self.islands) > MAX_ISLANDS:
            del self.islands[next(iter(self.islands))]

    def _landed(self, first_id: int, last_id: int) -> list[int]:
        """Takes out the islands that the range has come to."""
        landed = [island for island in self.islands if first_id <= island <= last_id]
        for island in landed:
            del self.islands[island]
        return landed

    def _cut_out_landed(self, landed: list[int]) -> None:
        for island in landed:
            if (hole := self.hole_of(island)) is not None:
                self._cut_out(hole, island, None)

    def _fill(self, hole: Hole, trade: Trade, origin: int) -> None:
        self.fills.append(Fill(trade.trade_id, hole, origin))
        if origin == BACKFILL:
            self.backfilled += 1
        else:
            self.late += 1
        self._cut_out(hole, trade.trade_id, edge_of(trade))
        self._fold()

    def _cut_out(self, hole: Hole, trade_id: int, edge: Edge | None) -> None:
        """Takes an id that is there now out of a hole."""
        at = self._place(trade_id)
        pieces = []
        if hole.first_id < trade_id:
            left = hole.part(hole.first_id, trade_id - 1)
            left.after = edge
            pieces.append(left)
        if trade_id < hole.last_id:
            right = hole.part(trade_id + 1, hole.last_id)
            right.before = edge
            pieces.append(right)
        for piece in pieces:
            piece.tries = 0
        self._replace(at, pieces)

    def miss(self, trade_id: int, cause: str, now_us: int, time_us: int = 0) -> None:
        """Takes an id back: its delivery failed for good.

        :param time_us: the exchange's time of it; the neighbours' are not known any more.
        """
        if self._is_anew(trade_id, time_us):
            # In the range that id is an older trade's, which was delivered.
            del self.anew[trade_id]
            self.islands.pop(trade_id, None)
            return
        if self._strays.get(trade_id) == time_us:
            del self._strays[trade_id]
            return
        if trade_id in self.islands:
            del self.islands[trade_id]
            self._candidate = None
        if self.knows(trade_id):
            before = Edge(trade_id - 1, time_us - 1, UNKNOWN) if time_us else None
            hole = Hole(trade_id, trade_id, cause, now_us, before)
            self._found(1)
            self._insert(self._place(trade_id) + 1, hole)
            self._tidy(trade_id, trade_id)

    # --- settling

    def prove(self, first_id: int, last_id: int, now_us: int, confirm_after_us: int) -> int:
        """REST has shown ids on both sides of these and none of them: what of them is missing is
        held for absent when it was shown twice, that long apart. How many ids became absent."""
        absent = 0
        for hole in self.holes_within(first_id, last_id):
            if hole.state is not State.OPEN:
                continue
            piece = self._carve(hole, max(hole.first_id, first_id), min(hole.last_id, last_id))
            # A clock that was set back must not make the wait endless.
            piece.proved_us = min(piece.proved_us, now_us)
            if not piece.proofs:
                piece.proofs, piece.proved_us = 1, now_us
            elif now_us - piece.proved_us >= confirm_after_us:
                piece.proofs += 1
                piece.state = State.ABSENT
                absent += piece.size
            self._note(piece)
        self._tidy(first_id, last_id)
        return absent

    def give_up(self, first_id: int, last_id: int) -> int:
        """These are not asked for any more; how many ids that concerned."""
        given_up = 0
        for hole in self.holes_within(first_id, last_id):
            if hole.state is State.OPEN:
                piece = self._carve(hole, max(hole.first_id, first_id), min(hole.last_id, last_id))
                piece.state = State.BEYOND
                given_up += piece.size
                self._note(piece)
        self._tidy(first_id, last_id)
        return given_up

    def tried(self, first_id: int, last_id: int, tries: int) -> None:
        """What is open of these was asked for in vain so often by now."""
        for hole in self.holes_within(first_id, last_id):
            if hole.state is State.OPEN:
                hole.tries = tries
                self._note(hole)

    # --- the list of holes

    def _place(self, trade_id: int) -> int:
        """The index of the last hole that begins at or before an id; -1 if none does."""
        return bisect_right(self.holes, trade_id, key=_first_id) - 1

    def _carve(self, hole: Hole, first_id: int, last_id: int) -> Hole:
        """The piece of a hole with these ids, as a hole of its own."""
        if (hole.first_id, hole.last_id) == (first_id, last_id):
            return hole
        piece = hole.part(first_id, last_id)
        pieces = [piece]
        if hole.first_id < first_id:
            pieces.insert(0, hole.part(hole.first_id, first_id - 1))
        if last_id < hole.last_id:
            pieces.append(hole.part(last_id + 1, hole.last_id))
        self._replace(self._place(first_id), pieces)
        return piece

    def _replace(self, at: int, pieces: list[Hole]) -> None:
        self._gone(self.holes[at])
        self.holes[at : at + 1] = pieces
        for piece in pieces:
            self._note(piece)

    def _found(self, trades: int) -> None:
        if trades:
            self.found += 1
            # Several absurd epochs must not exceed what a database can hold.
            self.found_trades = min(self.found_trades + trades, MAX_TRADE_ID)

    def _insert(self, at: int, hole: Hole) -> None:
        self.holes.insert(at, hole)
        self._note(hole)

    def _tidy(self, first_id: int, last_id: int) -> None:
        """Makes one of holes that touch each other and mean the same, around these ids."""
        at = max(1, self._place(first_id))
        while at < len(self.holes) and self.holes[at].first_id <= last_id + 1:
            left, right = self.holes[at - 1], self.holes[at]
            if left.last_id + 1 != right.first_id or not left.continues(right):
                at += 1
                continue
            joined = left.part(left.first_id, left.last_id)
            joined.last_id, joined.after = right.last_id, right.after
            joined.opened_us = min(left.opened_us, right.opened_us)
            joined.tries = max(left.tries, right.tries)
            joined.due_s = max(left.due_s, right.due_s)
            self._gone(right)
            self.holes[at - 1 : at + 1] = [joined]
            self._note(joined)
        self._fold()

    def _fold(self) -> None:
        while len(self.holes) > MAX_HOLES:
            at = bisect_left(self.holes, self._open_until, key=_first_id)
            while at < len(self.holes) and self.holes[at].state is State.OPEN:
                at += 1
            settled = at < len(self.holes)
            self._open_until = self.holes[at].first_id if settled else self.last_id + 1
            hole = self.holes.pop(at if settled else 0)
            self._gone(hole)
            self.folded += hole.size
            self.folded_until = max(self.folded_until, hole.last_id + 1)

    def _note(self, hole: Hole) -> None:
        if hole.state is not State.OPEN:
            self._open_until = min(self._open_until, hole.first_id)
        if self.changes is not None:
            self.changes[hole.first_id] = hole

    def _gone(self, hole: Hole) -> None:
        if self.changes is not None:
            self.changes[hole.first_id] = None

    def copy(self) -> Ids:
        """The same, for itself; its `changes` and `fills` are empty."""
        other = object.__new__(Ids)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.islands = dict(self.islands)
        other.anew = dict(self.anew)
        other._strays = dict(self._strays)
        other.changes = {}
        other.fills = []
        other.ended = []
        other.holes = [hole.copy() for hole in self.holes]
        return other


def _first_id(hole: Hole) -> int:
    return hole.first_id


def _bound(remembered: dict[int, Any]) -> None:
    if len(remembered) > MAX_ANEW:
        del remembered[next(iter(remembered))]
