"""Ids that begin anew: what begins an epoch, what confirms it, and what is none."""

from __future__ import annotations

import itertools

import pytest
from ids_rig import (
    BEYOND,
    EPOCH,
    FAR,
    FILLED,
    GARBAGE,
    JUMPED,
    LATER_US,
    NEXT,
    NOW_US,
    OPEN,
    REPEATED,
    SECOND_US,
    START_US,
    add,
    holes,
    made,
    neighbours,
    told_of,
    trade,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.holes import edge_of
from feedmono.delivery.ids import Epoch, Ids
from feedmono.trade import BACKFILL, SNAPSHOT, STREAM


def test_ids_that_begin_anew_with_a_newer_time_are_an_epoch() -> None:
    ids = made(1, 2, 3, 7)
    add(ids, GARBAGE)
    begin_us = ids.newest_us + ids_module.EPOCH_US
    again = trade(1)._replace(time_us=begin_us)
    early = again._replace(time_us=begin_us - 1)
    assert ids.add(early, STREAM, "gap", NOW_US, 10, 1) is REPEATED, "not new enough"
    assert ids.add(again, STREAM, "gap", NOW_US, 10, 6) is FAR, "one alone begins nothing"
    assert (ids.epoch, ids.first_id, ids.last_id, ids.newest_us) == (0, 1, 7, START_US + 7)
    assert (list(ids.islands), holes(ids), ids.ended) == ([GARBAGE], [(4, 6, OPEN)], [])
    assert ids.add(again, SNAPSHOT, "gap", NOW_US, 10, 7) is REPEATED
    assert ids.add(trade(2, begin_us), STREAM, "gap", NOW_US, 10, 8) is EPOCH
    assert (ids.epoch, ids.epoch_us, ids.first_id, ids.last_id) == (1, begin_us, 1, 2)
    assert (ids.last, ids.newest_us) == (trade(2, begin_us), begin_us + 2)
    assert (ids.holes, ids.islands, ids.changes, ids.sequence) == ([], {}, None, 8)
    assert ids.ended == [Epoch(0, START_US + 1, 1, 7, 3)]
    assert ids.add(again, STREAM, "gap", NOW_US, 10, 9) is REPEATED
    assert ids.add(trade(2, begin_us), STREAM, "gap", NOW_US, 10, 9) is REPEATED
    assert ids.add(trade(3, begin_us), STREAM, "gap", NOW_US, 10, 9) is NEXT
    assert (ids.found, ids.found_trades) == (1, 3), "totals outlive an epoch"


def test_between_the_first_two_trades_of_an_epoch_there_may_be_a_hole() -> None:
    ids = made(*range(100))
    assert add(ids, 5, 20, start_us=LATER_US, max_trades=10) == [FAR, EPOCH]
    assert (ids.first_id, ids.last_id) == (5, 20)
    assert holes(ids) == [(6, 9, BEYOND), (10, 19, OPEN)]
    assert neighbours(ids)[0][0] == edge_of(trade(5, LATER_US))
    assert neighbours(ids)[1][1] == edge_of(trade(20, LATER_US))
    assert (ids.found, ids.found_trades) == (1, 14)


def test_one_old_id_with_a_newer_time_is_taken_for_itself_alone() -> None:
    """Else the ids that the real ones skip in the new epoch, all delivered, were missing."""
    ids = made(*range(50, 60))
    for number in (55, 5):
        assert add(ids, number, start_us=LATER_US) == [FAR]
        assert add(ids, number, start_us=LATER_US) == [REPEATED]
        assert add(ids, ids.last_id + 1) == [NEXT]
        assert add(ids, number, start_us=LATER_US) == [REPEATED], "remembered for that"
    assert (ids.epoch, ids.first_id, ids.last_id, ids.holes) == (0, 50, 61, [])
    assert list(ids.islands) == [5], "what is within the range is there already"


@pytest.mark.parametrize("between", [60, 63])
def test_a_range_that_goes_on_denies_the_epoch(between: int) -> None:
    ids = made(*range(50, 60))
    assert add(ids, 52, start_us=LATER_US) == [FAR]
    add(ids, between)
    assert add(ids, 53, start_us=LATER_US) == [FAR]
    ids.last_id += 1
    assert add(ids, 54, start_us=LATER_US) == [FAR], "by the ways around `Ids.add` as well"
    assert ids.epoch == 0
    assert add(ids, 55, start_us=LATER_US) == [EPOCH]


def test_late_trades_repeats_and_pages_between_do_not_deny_the_epoch() -> None:
    for between, origin in itertools.product((47, 45, 50, 52, 55), (STREAM, BACKFILL)):
        ids = made(50, 51, 52, 58)
        assert add(ids, 51, start_us=LATER_US) == [FAR]
        add(ids, between, origin=origin)
        assert add(ids, 52, start_us=LATER_US) == [EPOCH]
        assert (ids.first_id, ids.last_id, ids.holes) == (51, 52, [])


def test_what_does_not_follow_on_the_first_of_an_epoch_confirms_none() -> None:
    far = 100 + ids_module.FAR
    ids = made(50, 500, far + 50)
    assert add(ids, 50, start_us=LATER_US) == [FAR]
    assert add(ids, 50, start_us=LATER_US + 1) == [FAR], "another trade with that id"
    assert add(ids, 40, start_us=LATER_US + 2 * SECOND_US) == [FAR], "one of another time"
    assert add(ids, far + 50, start_us=LATER_US) == [FAR], "one too far above"
    assert (ids.epoch, list(ids.islands)) == (0, [40])
    assert add(ids, 40, 50, start_us=LATER_US + 1) == [EPOCH, REPEATED]
    assert (ids.first_id, ids.last_id, ids.islands, ids.newest_us) == (40, 50, {}, LATER_US + 51)
    assert add(ids, far + 50, start_us=LATER_US) == [REPEATED], "it is none of that epoch"
    ids.miss(far + 50, "dead", NOW_US, LATER_US + far + 50)
    assert add(ids, far + 50, start_us=LATER_US) == [FAR], "too far for one alone"


def test_the_first_trades_of_an_epoch_may_come_in_any_order() -> None:
    for order in itertools.permutations((1, 2, 4, 7)):
        ids = made(*range(100))
        outcomes = add(ids, *order, start_us=LATER_US)
        assert outcomes[:2] == [FAR, EPOCH]
        assert REPEATED not in outcomes
        assert ids.epoch == 1
        below = min(order[:2])
        assert (ids.first_id, ids.last_id) == (min(below, *order), 7)
        assert [h[:2] for h in holes(ids)] == [(3, 3), (5, 6)]
        assert add(ids, *order, start_us=LATER_US) == [REPEATED] * 4


def test_all_that_looked_like_the_first_of_an_epoch_are_there_when_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids_module, "FAR", 10)
    ids = made(*range(0, 100, 10), 100)
    assert add(ids, 40, 20, 0, 60, start_us=LATER_US) == [FAR] * 4
    assert add(ids, 20, 60, start_us=LATER_US) == [REPEATED] * 2
    assert add(ids, 30, start_us=LATER_US) == [EPOCH]
    assert (ids.first_id, ids.last_id) == (20, 40)
    assert holes(ids) == [(21, 29, OPEN), (31, 39, OPEN)]
    assert ids.last == edge_of(trade(40, LATER_US))
    assert add(ids, 60, 0, start_us=LATER_US) == [REPEATED] * 2


def test_what_looked_like_the_first_of_an_epoch_is_bounded() -> None:
    ids = made(10**9)
    far = [n * 2 * ids_module.FAR for n in range(3 * ids_module.MAX_ANEW)]
    assert set(add(ids, *far, start_us=LATER_US)) == {FAR}
    assert list(ids.anew) == far[-ids_module.MAX_ANEW :]


@pytest.mark.parametrize("straggler", [3, 5, 11, 5000])
def test_a_late_trade_of_the_old_epoch_does_not_change_the_new_one(straggler: int) -> None:
    ids = made(*range(100))
    add(ids, 4, 10, start_us=LATER_US)
    ids.changes = {}
    before = told_of(ids) | {"_strays": {straggler: START_US + straggler}}
    late = trade(straggler)
    for outcome in (FAR, REPEATED):
        assert ids.add(late, STREAM, "gap", NOW_US, 10, 5) is outcome
        assert told_of(ids) == before
    assert ids.add(late, SNAPSHOT, "gap", NOW_US, 10, 5) is REPEATED, "it was delivered before"
    ids.miss(straggler, "dead", NOW_US, late.time_us)
    assert (told_of(ids)["holes"], ids.changes) == (before["holes"], {})
    assert add(ids, straggler, start_us=LATER_US)[0] in (NEXT, FILLED, JUMPED)


def test_a_clock_that_steps_back_in_the_first_epoch_is_no_matter() -> None:
    ids = Ids(trade(1, LATER_US))
    assert add(ids, 2, 5, 4) == [NEXT, JUMPED, FILLED]


def test_a_trade_a_little_older_than_the_first_of_an_epoch_confirms_it() -> None:
    ids = made(50, 51, 52)
    assert add(ids, 50, start_us=LATER_US) == [FAR]
    assert add(ids, 51, start_us=LATER_US - SECOND_US) == [EPOCH]
    assert ids.newest_us == LATER_US + 50


def test_an_epoch_may_begin_below_the_first_id_or_in_a_snapshot() -> None:
    for number, origin in itertools.product((5, 900, 999, 1000), (STREAM, SNAPSHOT)):
        ids = made(1000, 1001)
        assert add(ids, number, number + 1, origin=origin, start_us=LATER_US) == [FAR, EPOCH]
        assert (ids.first_id, ids.last_id) == (number, number + 1)


def test_a_page_begins_no_epoch() -> None:
    ids = made(10, 11, 12, 13)
    assert add(ids, 10, 11, origin=BACKFILL, start_us=LATER_US) == [REPEATED] * 2
    assert add(ids, 10, start_us=LATER_US) == [FAR]
    assert add(ids, 11, origin=BACKFILL, start_us=LATER_US) == [REPEATED], "nor confirms it one"
    assert add(ids, 11, start_us=LATER_US) == [EPOCH]


def test_ids_that_begin_anew_and_run_into_the_old_ones_lose_nothing() -> None:
    for first in (1990, 2050, 2098):
        ids = made(*range(2000, 2100))
        outcomes = add(ids, *range(first, 2200), start_us=LATER_US)
        assert outcomes == [FAR, EPOCH] + [NEXT] * (2198 - first)
    ids = made(*range(2000, 2100))
    assert add(ids, 2099, 2100, 2101, start_us=LATER_US) == [FAR, NEXT, NEXT]


def test_ids_that_begin_anew_and_run_into_an_old_hole_lose_and_double_nothing() -> None:
    for first in range(2030, 2050):
        ids = made(*range(2000, 2040), *range(2045, 2100))
        outcomes = add(ids, *range(first, 2200), start_us=LATER_US)
        filled = max(0, 2045 - first) if first >= 2040 else 0
        assert outcomes[:filled] == [FILLED] * filled
        assert outcomes[filled:] == [FAR, EPOCH] + [NEXT] * (2198 - first - filled)
        assert ids.holes == []


def test_a_clock_that_steps_back_makes_no_repeat_an_epoch() -> None:
    ahead_us = START_US + 50 * SECOND_US
    ids = Ids(trade(1, ahead_us))
    for number in range(2, 40):
        ids.add(trade(number, ahead_us), STREAM, "gap", NOW_US, 10, 0)
    for number in range(40, 50):
        assert ids.add(trade(number), STREAM, "gap", NOW_US, 10, 0) is NEXT
    for number in range(1, 50):
        again = trade(number, ahead_us if number < 40 else START_US)
        assert ids.add(again, SNAPSHOT, "gap", NOW_US, 10, 0) is REPEATED


def test_a_late_trade_with_a_newer_time_still_fills_its_hole() -> None:
    ids = made(5, 9)
    assert add(ids, 7, start_us=LATER_US) == [FILLED]
