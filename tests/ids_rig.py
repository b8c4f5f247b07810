"""What the tests of the ids share: trades made of their ids alone, and what is kept of them."""

from __future__ import annotations

from copy import copy

from feedmono.delivery.holes import Edge, Hole, State, edge_of
from feedmono.delivery.ids import Ids, Outcome
from feedmono.trade import BUY, STREAM, Trade

START_US = 1_700_000_000_000_000
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000
LATER_US = START_US + 10 * SECOND_US
GARBAGE = 9 * 10**18

OPEN, ABSENT, BEYOND = State
REPEATED, NEXT, FILLED, JUMPED, FAR, EPOCH = Outcome


def trade(trade_id: int, start_us: int = START_US) -> Trade:
    """Each id has figures of its own."""
    return Trade("BTC/USD", trade_id, f"{trade_id}.50", "1.0", BUY, start_us + trade_id % 10**9)


def edge(trade_id: int) -> Edge:
    return edge_of(trade(trade_id))


def add(
    ids: Ids,
    *numbers: int,
    origin: int = STREAM,
    max_trades: int = 10**6,
    start_us: int = START_US,
) -> list[Outcome]:
    return [
        ids.add(trade(number, start_us), origin, "gap", NOW_US, max_trades, sequence)
        for sequence, number in enumerate(numbers)
    ]


def made(*numbers: int) -> Ids:
    ids = Ids(trade(numbers[0]))
    add(ids, *numbers[1:])
    return ids


def holes(ids: Ids) -> list[tuple[int, int, State]]:
    return [(hole.first_id, hole.last_id, hole.state) for hole in ids.holes]


def neighbours(ids: Ids) -> list[tuple[Edge | None, Edge | None]]:
    return [(hole.before, hole.after) for hole in ids.holes]


def told(hole: Hole) -> tuple[object, ...]:
    """All that is kept of a hole."""
    return tuple(getattr(hole, name) for name in Hole.__slots__)


def told_of(ids: Ids) -> dict[str, object]:
    """All that is kept of a symbol, but for what the caller empties."""
    passing = ("changes", "fills", "ended", "holes")
    kept = {name: copy(getattr(ids, name)) for name in Ids.__slots__ if name not in passing}
    return {**kept, "holes": [told(hole) for hole in ids.holes], "islands": list(ids.islands)}
