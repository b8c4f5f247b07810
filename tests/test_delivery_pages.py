"""Pages in the serializer's loop: what they fill, what is refused, what is given up, and when they
are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from delivery_rig import (
    DAY_US,
    SYMBOL,
    T0_US,
    Rig,
    asked,
    clock,
    delivered_holes,
    frame,
    rig,
    row,
    store,
)
from toy import Events, events

from feedmono import messages
from feedmono.counters import Field
from feedmono.delivery import loop
from feedmono.delivery.holes import State
from feedmono.exchanges.base import PageRequest
from feedmono.ring_layout import PAGE
from feedmono.trade import BACKFILL

__all__ = ["clock", "events", "rig"]


def page(rig: Rig, wish: PageRequest, rows: Sequence[object] | bytes) -> None:
    body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    rig.append(messages.page(wish, body), kind=PAGE)


def test_a_page_fills_a_hole_and_is_counted_trade_by_trade(rig: Rig) -> None:
    rig.append(frame(1), frame(5))
    (wish,) = asked(rig)
    page(rig, wish, [row(number) for number in range(1, 6)])
    rig.step()
    entry = rig.sink.taken[-1]
    assert (entry.symbol, entry.frame.origin, len(entry.trades)) == (SYMBOL, BACKFILL, 3)
    assert json.loads(entry.frame.payload)[0]["id"] == 1, "the answer's own bytes"
    store(rig)
    assert delivered_holes(rig) == []
    assert rig.counters[Field.DELIVERED_TRADES] == 5
    assert rig.counters[Field.BACKFILLED] == 3
    assert (rig.counters[Field.HOLES_OPEN], rig.counters[Field.HOLES]) == (0, 1)


def test_what_a_page_lacks_twice_is_absent_in_the_ledger(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.append(frame(1), frame(5))
    for since_s in (0, 100):
        monkeypatch.setattr("feedmono.delivery.normalizer.steady_time", lambda s=since_s: 1e6 + s)
        (wish,) = asked(rig, 1000.0)
        page(rig, wish, [row(number) for number in (1, 2, 4, 5) if number >= wish.first_id])
        store(rig)
    assert delivered_holes(rig) == [(3, 3, "exchange", State.ABSENT)]
    assert rig.counters[Field.ABSENT] == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([row(1, "9.99"), row(2), row(3)], "1"), (b"Bad Gateway", "not a list of trades")],
    ids=["another market's", "no page"],
)
def test_a_page_that_can_not_be_what_was_asked_for_is_refused_and_told_once(
    rig: Rig, events: Events, rows: Sequence[object] | bytes, reason: str
) -> None:
    rig.append(frame(1), frame(5))
    for _ in range(2):
        (wish,) = asked(rig, 1000.0)
        page(rig, wish, rows)
        rig.step()
        dead = rig.sink.taken[-1].dead
        assert dead is not None
        assert (dead.stage, dead.symbol) == ("page", SYMBOL)
        assert reason in dead.reason
    assert rig.counters[Field.PAGES_REFUSED] == 2
    assert len(events.named("refused a page")) == 1
    (wish,) = asked(rig, 1000.0)
    page(rig, wish, [row(number) for number in range(1, 6)])
    store(rig)
    assert delivered_holes(rig) == []


def test_a_page_of_too_old_trades_is_told_to_the_ledger_behind_what_is_under_way(
    rig: Rig,
) -> None:
    rig.append(frame(1), frame(5, T0_US + 1), frame(6, T0_US + 2 * DAY_US))
    rig.step()
    rig.step()
    assert rig.loop._deferred, "the ledger does not know of the hole yet"
    store(rig)
    assert not rig.loop._deferred
    assert delivered_holes(rig) == [(2, 4, "exchange", State.BEYOND)]


def test_what_is_given_up_is_not_in_the_ledger_before_all_that_was_under_way(rig: Rig) -> None:
    rig.append(frame(1), frame(5, T0_US + 1), frame(6, T0_US + 2 * DAY_US))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    assert delivered_holes(rig) == [(2, 4, "exchange", State.OPEN)]
    rig.sink.acknowledge(3)
    rig.step()
    assert delivered_holes(rig) == [(2, 4, "exchange", State.BEYOND)]


def test_nothing_is_asked_for_that_could_not_be_read(rig: Rig) -> None:
    """In the end, and while the window is full."""
    rig.append(frame(1), frame(5))
    store(rig)
    rig.now_s += 10.0
    rig.asked.clear()
    rig.loop.step(hurry=True, reads=False)
    assert not rig.asked
    rig.append(*(frame(number) for number in range(6, 6 + rig.window)))
    rig.step()
    assert len(rig.sink.taken) == 2 + rig.window
    assert not rig.asked
    rig.sink.acknowledge(3)
    rig.step()
    assert len(rig.asked) == 1, "there is room for the answer"


def test_what_is_given_up_while_nothing_is_under_way_is_written_within_a_second(
    rig: Rig, clock: list[float]
) -> None:
    rig.append(frame(1), frame(5, T0_US + 1))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    rig.seen.symbols[SYMBOL].newest_us = T0_US + 2 * DAY_US
    rig.seen.touched.add(SYMBOL)
    clock[0] += 10
    rig.loop.step()
    assert rig.ledger is not None
    assert rig.ledger.dirty
    clock[0] += loop.COMMIT_S - 0.01
    rig.loop.step()
    assert [state for *_, state in delivered_holes(rig)] == [State.OPEN]
    clock[0] += 0.02
    rig.loop.step()
    assert [state for *_, state in delivered_holes(rig)] == [State.BEYOND]
