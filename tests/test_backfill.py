"""From holes to requests, and what an answer proves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from feedmono.config import BackfillConfig
from feedmono.delivery.backfill import (
    ANSWER_LIMIT_S,
    DEAD,
    GRACE_S,
    MAX_OUTSTANDING,
    TAIL_WAITS_S,
    Backfill,
)
from feedmono.delivery.holes import State
from feedmono.delivery.seen import Seen
from feedmono.exchanges import load
from feedmono.exchanges.base import Decoded, PageRequest
from feedmono.trade import BACKFILL, STREAM, Trade

HOUR_US = 3_600_000_000
T0_US = 1_700_000_000_000_000


def trade(trade_id: int, symbol: str = "X", time_us: int | None = None) -> Trade:
    moment = T0_US + trade_id * 1000 if time_us is None else time_us
    return Trade(symbol, trade_id, f"{trade_id}.50", "1.00", trade_id % 2, moment)


def by_rest(trade_id: int, symbol: str = "X") -> Trade:
    """The same trade as REST writes it: more zeros, fewer digits of the time."""
    t = trade(trade_id, symbol)
    return t._replace(price=t.price + "000", time_us=t.time_us // 1000 * 1000)


class Rig:
    """Backfill of one exchange, with a clock by hand and requests in a list."""

    def __init__(
        self, exchange: str = "binance", max_trades: int = 100_000, max_age_s: float = 86400
    ) -> None:
        self.now_s = 1000.0
        self.wall_us = T0_US + 3 * HOUR_US
        self.asked: list[PageRequest] = []
        self.deaf = False
        self.seen = Seen({}, max_trades)
        config = BackfillConfig(max_age_s, max_trades, 60)
        self.backfill = Backfill(
            self.seen,
            load(exchange),
            config,
            (),
            self._ask,
            lambda: self.now_s,
            lambda: self.wall_us / 1e6,
        )
        self.told: list[Any] = []

    def _ask(self, wish: PageRequest) -> bool:
        if not self.deaf:
            self.asked.append(wish)
        return not self.deaf

    def stream(self, *ids: int, symbol: str = "X") -> None:
        for trade_id in ids:
            self.seen.admit((trade(trade_id, symbol),), STREAM, trade_id, 0)

    def tick(self, seconds: float = GRACE_S) -> list[PageRequest]:
        """What is asked for after so long."""
        self.asked.clear()
        self.told += self.backfill.tick()
        self.now_s += seconds
        self.told += self.backfill.tick()
        return list(self.asked)

    def page(
        self, wish: PageRequest, trades: Sequence[Trade], problems: Sequence[str] = ()
    ) -> tuple[list[int], str]:
        """The ids that a page brought, and why it was refused."""
        decoded = Decoded(trades, BACKFILL, problems)
        wanted = self.backfill.wanted(wish, decoded)
        admitted = self.seen.admit(wanted.trades, BACKFILL, 0, 0) if wanted.trades else ()
        now_us = int(self.now_s * 1e6)
        self.told += self.backfill.take(wish, decoded, wanted.flaw, len(admitted), now_us)
        return [t.trade_id for t in admitted], wanted.flaw

    def holes(self, symbol: str = "X") -> list[tuple[int, int, State]]:
        return [(h.first_id, h.last_id, h.state) for h in self.seen.symbols[symbol].holes]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_hole_is_asked_for_with_its_neighbours_after_a_moment(rig: Rig) -> None:
    rig.stream(1, 2, 3, 7)
    assert rig.tick(0.0) == []
    (wish,) = rig.tick()
    assert wish == PageRequest("X", 3, trade(3).time_us, 5, False)
    assert rig.page(wish, [by_rest(i) for i in range(3, 8)]) == ([4, 5, 6], "")
    assert rig.holes() == []
    assert rig.backfill.open_holes == 1, "counted at the next tick"
    assert rig.tick(100) == []
    assert (rig.backfill.open_holes, rig.backfill.open_trades) == (0, 0)
    assert rig.backfill.next_s() == math.inf


def test_a_trade_that_is_merely_late_is_not_asked_for(rig: Rig) -> None:
    rig.stream(1, 3, 2)
    assert rig.tick(10) == []
    assert rig.seen.late == 1


def test_near_holes_share_a_page_and_far_ones_do_not(rig: Rig) -> None:
    rig.stream(1, 3, 5, 990, 5000, 5002)
    wishes = rig.tick()
    assert [(w.first_id, w.rows) for w in wishes] == [(1, 990)]
    assert rig.page(wishes[0], [by_rest(i) for i in range(1, 991)])[1] == ""
    (wish,) = rig.tick(0.0)
    assert (wish.first_id, wish.rows) == (4001, 1000), "the newest page of a large hole first"


def test_a_large_hole_is_fetched_page_by_page_until_it_is_closed(rig: Rig) -> None:
    rig.stream(1, 3500)
    brought: list[int] = []
    for _ in range(10):
        wishes = rig.tick()
        if not wishes:
            break
        (wish,) = wishes
        brought += rig.page(wish, [by_rest(i) for i in range(wish.first_id, wish.first_id + 1000)])[
            0
        ]
    assert sorted(brought) == list(range(2, 3500))
    assert rig.holes() == []


def test_each_symbol_gets_its_turn_and_few_are_out_at_a_time(rig: Rig) -> None:
    names = [f"S{n}" for n in range(20)]
    for name in names:
        rig.stream(1, 100_000, symbol=name)
    first = rig.tick()
    assert len(first) == MAX_OUTSTANDING
    asked = [w.symbol for w in first]
    while len(asked) < len(names):
        for wish in first:
            rig.page(
                wish, [by_rest(i, wish.symbol) for i in range(wish.first_id, wish.first_id + 1000)]
            )
        first = rig.tick(0.0)
        asked += [w.symbol for w in first]
    assert set(asked) == set(names), "no symbol waits for the end of another's large hole"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rows: list(reversed(rows)), "do not rise"),
        (lambda rows: [r._replace(trade_id=r.trade_id + 10**9 + 7) for r in rows], "no trade that"),
        (lambda rows: [r._replace(price="9.9") for r in rows], "is another than"),
        (lambda rows: [r._replace(time_us=r.time_us + 10**7) for r in rows], "is another than"),
        (lambda rows: [r._replace(side=1 - r.side) for r in rows], "is another than"),
        (lambda rows: rows[1:-1], "no trade that"),
        (lambda rows: [by_rest(2), *rows], "before the"),
    ],
)
def test_a_page_that_is_not_of_this_symbol_is_refused_and_asked_for_again(
    rig: Rig, spoil: Any, reason: str
) -> None:
    rig.stream(1, 2, 3, 7)
    (wish,) = rig.tick()
    brought, flaw = rig.page(wish, spoil([by_rest(i) for i in range(3, 8)]))
    assert not brought
    assert reason in flaw
    assert rig.holes() == [(4, 6, State.OPEN)]
    assert rig.tick(1.0) == []
    assert rig.tick(2.0) == [wish]


def test_what_rest_lacks_twice_between_ids_that_it_has_is_absent(rig: Rig) -> None:
    rig.stream(1, 2, 3, 7)
    rows = [by_rest(3), by_rest(5), by_rest(7)]
    (wish,) = rig.tick()
    assert rig.page(wish, rows) == ([5], "")
    assert rig.holes() == [(4, 4, State.OPEN), (6, 6, State.OPEN)]
    assert rig.tick(59) == []
    (again,) = rig.tick(2)
    rig.page(again, rows)
    assert rig.holes() == [(4, 4, State.ABSENT), (6, 6, State.ABSENT)]
    rig.tick(0)
    assert (rig.backfill.open_holes, rig.backfill.absent) == (0, 2)
    rig.stream(4)
    assert rig.holes() == [(6, 6, State.ABSENT)], "a trade that comes after all is taken"


def test_a_page_with_unreadable_rows_proves_no_absence(rig: Rig) -> None:
    rig.stream(1, 2, 3, 7)
    rows = [by_rest(3), by_rest(5), by_rest(7)]
    for seconds in (0.5, 120, 120):
        (wish,) = rig.tick(seconds)
        rig.page(wish, rows, ["a row without a price"])
    assert [h[2] for h in rig.holes()] == [State.OPEN, State.OPEN]


def test_a_page_that_ends_before_the_hole_proves_nothing(rig: Rig) -> None:
    rig.stream(1, 2, 3, 7)
    (wish,) = rig.tick()
    assert rig.page(wish, [by_rest(3)]) == ([], "")
    assert rig.holes() == [(4, 6, State.OPEN)]
    assert rig.tick(1.9) == []
    assert rig.tick(0.2) == [wish]


def test_an_empty_page_and_a_failed_request_are_tried_again_with_growing_waits(rig: Rig) -> None:
    rig.stream(1, 3)
    (wish,) = rig.tick()
    rig.page(wish, [])
    for wait_s in (2, 4, 8):
        assert rig.tick(wait_s - 0.1) == []
        assert rig.tick(0.2) == [wish]
        rig.backfill.failed("X", wish.first_id, passing=False)


def test_a_lost_request_is_asked_again(rig: Rig) -> None:
    rig.stream(1, 3)
    (wish,) = rig.tick()
    assert rig.tick(ANSWER_LIMIT_S - 1) == []
    assert rig.tick(1) == []
    assert rig.tick(2) == [wish]
    rig.backfill.reader_started()
    assert rig.tick(4) == [wish], "a reader that starts has forgotten what was asked before"


def test_a_reader_that_takes_no_request_is_asked_later(rig: Rig) -> None:
    rig.deaf = True
    rig.stream(1, 3)
    assert rig.tick() == []
    rig.deaf = False
    assert len(rig.tick()) == 1


def test_a_quiet_symbols_tail_is_looked_at_twice(rig: Rig) -> None:
    rig.stream(1, 2)
    rig.backfill.subscribed("X")
    assert rig.tick(0.5) == []
    (wish,) = rig.tick(TAIL_WAITS_S[0])
    assert (wish.first_id, wish.tail) == (2, True)
    assert rig.page(wish, [by_rest(2), by_rest(3), by_rest(5)]) == ([3, 5], "")
    assert rig.seen.backfilled == 2
    assert rig.holes() == [(4, 4, State.OPEN)]
    (again,) = rig.tick(TAIL_WAITS_S[1])
    assert (again.first_id, again.tail) == (5, True)
    rig.page(again, [by_rest(5)])
    (hole,) = rig.tick(1000)
    assert (hole.first_id, hole.tail) == (3, False), "the same page did not have 4: once more"


def test_a_tail_that_the_stream_or_a_snapshot_has_shown_is_not_asked_for(rig: Rig) -> None:
    rig.stream(1, 2)
    rig.backfill.subscribed("X")
    rig.stream(3)
    assert rig.tick(1000) == []
    rig.backfill.subscribed("X")
    rig.backfill.snapshot("X", 3)
    assert rig.tick(1000) == []


def test_a_full_page_of_the_tail_is_followed_by_the_next(rig: Rig) -> None:
    rig.stream(1)
    rig.backfill.subscribed("X")
    (wish,) = rig.tick(2)
    rig.page(wish, [by_rest(i) for i in range(1, 1001)])
    (wish,) = rig.tick(0.0)
    assert (wish.first_id, wish.tail) == (1000, True)


def test_rows_beyond_the_last_trade_are_left_to_the_stream_unless_the_tail_was_asked(
    rig: Rig,
) -> None:
    rig.stream(1, 3)
    (wish,) = rig.tick()
    assert rig.page(wish, [by_rest(i) for i in range(1, 6)]) == ([2], "")
    assert rig.seen.symbols["X"].last_id == 3


def test_of_a_hole_that_is_too_large_the_newest_trades_are_asked_for() -> None:
    rig = Rig(max_trades=100)
    rig.stream(1, 5000)
    assert rig.holes() == [(2, 4899, State.BEYOND), (4900, 4999, State.OPEN)]
    (wish,) = rig.tick()
    assert (wish.first_id, wish.rows) == (4899, 102)


def test_a_hole_that_is_too_old_is_given_up_by_the_exchanges_clock() -> None:
    rig = Rig(max_age_s=3600)
    rig.seen.admit((trade(1, time_us=T0_US),), STREAM, 1, 0)
    rig.seen.admit((trade(5, time_us=T0_US + HOUR_US),), STREAM, 2, 0)
    assert len(rig.tick()) == 1
    rig.seen.admit((trade(8, time_us=T0_US + 3 * HOUR_US),), STREAM, 3, 0)
    rig.tick()
    assert rig.holes() == [(2, 4, State.BEYOND), (6, 7, State.OPEN)]
    assert len(rig.told) == 1, "the ledger is told"


def test_one_absurd_time_gives_nothing_up(rig: Rig) -> None:
    rig.stream(1, 3)
    rig.seen.admit((trade(5, time_us=4 * T0_US),), STREAM, 9, 0)
    assert len(rig.tick()) == 1
    assert {h[2] for h in rig.holes()} == {State.OPEN}


def test_of_a_hole_that_is_partly_too_old_the_rest_is_fetched_by_id() -> None:
    rig = Rig(max_age_s=3600)
    rig.seen.admit((trade(1, time_us=T0_US),), STREAM, 1, 0)
    rig.seen.admit((trade(3000, time_us=T0_US + 3 * HOUR_US),), STREAM, 2, 0)

    def row(i: int) -> Trade:
        return trade(i, time_us=T0_US + i * 3 * HOUR_US // 3000)

    (wish,) = rig.tick()
    rig.page(wish, [row(i) for i in range(wish.first_id, 3001)])
    (wish,) = rig.tick()
    brought, flaw = rig.page(wish, [row(i) for i in range(wish.first_id, wish.first_id + 1000)])
    assert not flaw
    assert brought
    assert rig.holes() == [(2, wish.first_id - 1, State.BEYOND)]


def test_a_hole_is_fetched_by_time_where_the_exchange_has_no_other_way() -> None:
    rig = Rig("kraken")
    rig.stream(1, 2, 2500)
    (wish,) = rig.tick()
    assert (wish.first_id, wish.since_us, wish.rows) == (2, trade(2).time_us, 1000)
    brought, _ = rig.page(wish, [by_rest(i) for i in range(1, 1001)])
    assert brought == list(range(3, 1001))
    (wish,) = rig.tick()
    assert wish.since_us == by_rest(1000).time_us


def test_a_page_by_time_that_ends_before_the_hole_is_followed_by_the_next() -> None:
    rig = Rig("kraken")
    rig.stream(1, 2, 3, 5)
    rig.seen.symbols["X"].holes[0].before = None
    (wish,) = rig.tick()
    assert wish.since_us == trade(1).time_us, "nothing but the beginning is known"
    assert rig.page(wish, [trade(1), trade(2)]) == ([], "")
    (wish,) = rig.tick()
    assert wish.since_us == trade(2).time_us
    assert rig.page(wish, [trade(i) for i in range(2, 6)]) == ([4], "")


def test_a_page_for_a_symbol_of_which_nothing_is_known_is_refused(rig: Rig) -> None:
    wish = PageRequest("NEW", 1, 1, 10, False)
    assert rig.page(wish, [by_rest(1, "NEW")]) == ([], "nothing is known of its symbol")


def test_a_trade_whose_delivery_failed_is_asked_for_again_less_and_less_often(rig: Rig) -> None:
    rig.stream(1, 2, 3)
    for wait_s in (60, 120, 240):
        rig.seen.miss(trade(2), DEAD, 0)
        assert rig.tick(wait_s - 1) == []
        (wish,) = rig.tick(2)
        assert (wish.first_id, wish.rows) == (1, 3)
        assert rig.page(wish, [by_rest(i) for i in (1, 2, 3)]) == ([2], "")
    rig.seen.miss(trade(2), DEAD, 0)
    rig.wall_us += 48 * HOUR_US
    rig.seen.admit((trade(4, time_us=T0_US + 48 * HOUR_US),), STREAM, 9, 0)
    rig.seen.touched.add("X")
    assert rig.tick(10_000) == []
    assert rig.holes() == [(2, 2, State.BEYOND)], "some day it is too old"


def test_a_failure_that_says_nothing_about_the_hole_does_not_make_it_wait_longer(rig: Rig) -> None:
    rig.stream(1, 3)
    for seconds in (0.5, 2, 2, 2, 2):
        (wish,) = rig.tick(seconds)
        rig.backfill.failed("X", wish.first_id, passing=True)
    assert rig.seen.symbols["X"].holes[0].tries == 0


def test_an_answer_that_may_lie_unread_in_the_ring_is_not_asked_for_again(rig: Rig) -> None:
    rig.stream(1, 3)
    assert len(rig.tick()) == 1
    for _ in range(100):
        rig.now_s += ANSWER_LIMIT_S
        rig.backfill.tick(caught_up=False)
    assert len(rig.asked) == 1


def test_the_ledger_learns_how_often_a_hole_was_asked_for_in_vain(rig: Rig) -> None:
    rig.stream(1, 3)
    (wish,) = rig.tick()
    rig.backfill.failed("X", wish.first_id, passing=False)
    rig.tick()
    delivered = rig.seen.symbols["X"].copy()
    delivered.holes[0].tries = 0

    class Told:
        def tried(self, symbol: str, first_id: int, last_id: int, tries: int) -> None:
            delivered.tried(first_id, last_id, tries)

    for tell in rig.told:
        tell(Told())
    assert delivered.holes[0].tries == 1


def test_ids_that_begin_anew_are_not_asked_for_as_before(rig: Rig) -> None:
    rig.stream(1, 3)
    rig.backfill.subscribed("X")
    assert len(rig.tick()) == 1
    rig.backfill.begun_anew("X")
    assert rig.tick(1000) == []


def test_of_a_hole_by_time_that_begins_too_long_ago_the_rest_is_fetched() -> None:
    rig = Rig("kraken", max_age_s=3600)

    def at(i: int) -> Trade:
        return trade(i, time_us=T0_US + i * 3 * HOUR_US // 9000)

    rig.seen.admit((at(1),), STREAM, 1, 0)
    rig.seen.admit((at(9000),), STREAM, 2, 0)
    brought: list[int] = []
    for _ in range(20):
        wishes = rig.tick()
        if not wishes:
            break
        (wish,) = wishes
        rows = [at(i) for i in range(1, 9001) if at(i).time_us >= wish.since_us][: wish.rows]
        found, flaw = rig.page(wish, rows)
        assert not flaw
        brought += found
    assert brought == list(range(6000, 9000))
    assert rig.holes() == [(2, 5999, State.BEYOND)]


def test_of_too_large_a_hole_by_time_exactly_the_newest_trades_are_fetched() -> None:
    rig = Rig("kraken", max_trades=1000)

    def at(i: int) -> Trade:
        """Most of them at the end: a guess of when the wanted ones were made is too late."""
        return trade(i, time_us=T0_US + (HOUR_US if i > 4500 else 0) + i * 1000)

    rig.seen.admit((at(1),), STREAM, 1, 0)
    rig.seen.admit((at(5002),), STREAM, 2, 0)
    brought: list[int] = []
    for _ in range(40):
        wishes = rig.tick()
        if not wishes:
            break
        (wish,) = wishes
        rows = [at(i) for i in range(1, 5003) if at(i).time_us >= wish.since_us][: wish.rows]
        found, flaw = rig.page(wish, rows)
        assert not flaw
        brought += found
    assert sorted(brought) == list(range(4002, 5002))
    assert rig.holes() == [(2, 4001, State.BEYOND)]


def test_a_tail_that_begins_too_long_ago_is_left_to_the_next_trade() -> None:
    rig = Rig(max_age_s=3600)
    rig.seen.admit((trade(1, time_us=T0_US - 1000 * HOUR_US),), STREAM, 1, 0)
    rig.stream(1, symbol="OTHER")
    rig.backfill.subscribed("X")
    (wish,) = rig.tick(2)
    old = [trade(i, time_us=T0_US - 1000 * HOUR_US + i) for i in range(2, 1001)]
    rig.page(wish, [trade(1, time_us=T0_US - 1000 * HOUR_US), *old])
    assert rig.tick(1000) == []


def test_with_backfill_off_nothing_is_asked_for() -> None:
    rig = Rig(max_age_s=0)
    rig.stream(1, 5)
    rig.backfill.subscribed("X")
    assert rig.tick(1000) == []
    assert rig.holes() == [(2, 4, State.BEYOND)]
