"""The ids of a symbol: what is new, what is missing, what becomes of what is missing."""

from __future__ import annotations

import itertools
import random
from copy import copy

import pytest

from feedmono.delivery import ids as ids_module
from feedmono.delivery.ids import UNKNOWN, Edge, Epoch, Hole, Ids, Outcome, State, edge_of, mark_of
from feedmono.trade import BACKFILL, BUY, MAX_TRADE_ID, SELL, SNAPSHOT, STREAM, Trade

START_US = 1_700_000_000_000_000
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000
LATER_US = START_US + 10 * SECOND_US
GARBAGE = 9 * 10**18
SEEDS = 1000

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


# --- what is new


def test_the_first_trade_is_the_whole_range() -> None:
    ids = Ids(trade(5))
    assert (ids.first_id, ids.last_id, ids.holes) == (5, 5, [])
    assert (ids.knows(4), ids.knows(5), ids.knows(6)) == (False, True, False)
    assert ids.last_edge == edge(5)
    assert (ids.epoch, ids.epoch_us, ids.newest_us) == (0, START_US + 5, START_US + 5)


def test_next_ids_lengthen_the_range() -> None:
    ids = Ids(trade(5))
    assert [ids.add(trade(n), STREAM, "gap", NOW_US, 10, 70 + n) for n in (6, 7)] == [NEXT, NEXT]
    assert (ids.first_id, ids.last_id, ids.holes) == (5, 7, [])
    assert ids.sequence == 77, "that of the frame with the last id"
    assert ids.last == trade(7)
    assert ids.newest_us == START_US + 7


def test_a_repeat_changes_nothing() -> None:
    ids = made(5, 6, 7)
    assert add(ids, 5, 6, 7) == [REPEATED] * 3
    assert add(ids, 5, 7, origin=SNAPSHOT) == [REPEATED] * 2
    assert add(ids, 5, 7, origin=BACKFILL) == [REPEATED] * 2
    assert (ids.first_id, ids.last_id, ids.holes, ids.changes) == (5, 7, [], {})


def test_a_jump_opens_a_hole_between_its_neighbours() -> None:
    ids = made(5)
    assert add(ids, 9) == [JUMPED]
    (hole,) = ids.holes
    assert (hole.first_id, hole.last_id, hole.size, hole.state) == (6, 8, 3, OPEN)
    assert (hole.before, hole.after) == (edge(5), edge(9))
    assert (hole.cause, hole.opened_us) == ("gap", NOW_US)
    assert [ids.knows(n) for n in range(4, 11)] == [False, True, False, False, False, True, False]
    assert (ids.found, ids.found_trades, ids.missing()) == (1, 3, 3)
    assert ids.changes == {6: hole}


def test_a_late_trade_at_the_front_of_a_hole_shortens_it() -> None:
    ids = made(5, 9)
    assert add(ids, 6) == [FILLED]
    assert holes(ids) == [(7, 8, OPEN)]
    assert neighbours(ids) == [(edge(6), edge(9))]


def test_a_late_trade_at_the_end_of_a_hole_shortens_it() -> None:
    ids = made(5, 9)
    assert add(ids, 8) == [FILLED]
    assert holes(ids) == [(6, 7, OPEN)]
    assert neighbours(ids) == [(edge(5), edge(8))]
    assert (ids.last_id, ids.last) == (9, trade(9))


def test_a_late_trade_in_the_middle_of_a_hole_makes_two() -> None:
    ids = made(5, 9)
    assert add(ids, 7) == [FILLED]
    assert holes(ids) == [(6, 6, OPEN), (8, 8, OPEN)]
    assert neighbours(ids) == [(edge(5), edge(7)), (edge(7), edge(9))]
    assert [(hole.cause, hole.opened_us) for hole in ids.holes] == [("gap", NOW_US)] * 2
    assert (ids.found, ids.found_trades) == (1, 3), "found once, whatever becomes of it"


def test_the_last_missing_trade_closes_the_hole() -> None:
    ids = made(5, 9)
    assert add(ids, 7, 6) == [FILLED] * 2
    assert add(ids, 8, origin=BACKFILL) == [FILLED]
    assert (ids.holes, ids.missing()) == ([], 0)
    assert (ids.late, ids.backfilled) == (2, 1)
    assert add(ids, 6, 7, 8) == [REPEATED] * 3
    assert ids.changes == {6: None, 8: None}


def test_a_fill_tells_what_hole_it_came_to() -> None:
    ids = made(5, 9)
    add(ids, 7)
    add(ids, 6, origin=BACKFILL)
    told = [(f.trade_id, f.hole.first_id, f.hole.last_id, f.origin) for f in ids.fills]
    assert told == [(7, 6, 8, STREAM), (6, 6, 6, BACKFILL)]


def test_a_fill_makes_the_rest_be_asked_for_as_if_never_before() -> None:
    ids = made(5, 9)
    ids.tried(8, 8, 2)
    assert ids.holes[0].tries == 2
    add(ids, 7)
    assert [hole.tries for hole in ids.holes] == [0, 0]


def test_a_trade_just_below_the_first_is_late_and_new() -> None:
    """After a restart the first id known may be that of a trade that overtook another."""
    ids = made(10)
    assert add(ids, 9) == [NEXT]
    assert (ids.first_id, ids.holes) == (9, [])
    assert add(ids, 3) == [NEXT]
    assert (ids.first_id, ids.last_id) == (3, 10)
    assert holes(ids) == [(4, 8, OPEN)]
    assert ids.holes[0].before == edge(3)
    assert add(ids, 3, 9, 10) == [REPEATED] * 3
    assert add(ids, 5) == [FILLED]


def test_a_snapshot_or_a_page_below_the_first_repeats_what_was_before_the_beginning() -> None:
    ids = made(10, 11)
    assert add(ids, 8, 9, 10, 12, origin=SNAPSHOT) == [REPEATED, REPEATED, REPEATED, NEXT]
    assert add(ids, 1, 9, origin=BACKFILL) == [REPEATED] * 2
    assert (ids.first_id, ids.last_id, ids.holes) == (10, 12, [])


def test_a_snapshot_fills_a_hole() -> None:
    ids = made(10, 14)
    assert add(ids, 8, 11, 12, 14, 15, origin=SNAPSHOT) == [
        REPEATED,
        FILLED,
        FILLED,
        REPEATED,
        NEXT,
    ]
    assert holes(ids) == [(13, 13, OPEN)]


def test_every_id_that_fits_can_be_the_first_and_the_last() -> None:
    ids = made(0)
    assert add(ids, MAX_TRADE_ID, MAX_TRADE_ID) == [FAR, REPEATED]
    assert add(ids, 1, 0) == [NEXT, REPEATED]
    top = made(MAX_TRADE_ID - 2, MAX_TRADE_ID)
    assert holes(top) == [(MAX_TRADE_ID - 1, MAX_TRADE_ID - 1, OPEN)]


# --- what is too far


def test_one_absurd_id_is_taken_for_itself_alone() -> None:
    ids = made(5, 6)
    assert add(ids, GARBAGE) == [FAR]
    assert (ids.last_id, ids.last, ids.holes, ids.newest_us) == (6, trade(6), [], START_US + 6)
    assert add(ids, 7, 8) == [NEXT] * 2, "the real ones go on"
    assert add(ids, 11) == [JUMPED]
    assert holes(ids) == [(9, 10, OPEN)]
    assert add(ids, GARBAGE, GARBAGE) == [REPEATED] * 2
    assert add(ids, 9) == [FILLED]
    assert ids.knows(GARBAGE)
    assert not ids.knows(GARBAGE - 1)


def test_a_far_jump_is_believed_when_the_next_trade_confirms_it() -> None:
    ids = made(5)
    far = 5 + ids_module.FAR + 1
    assert add(ids, far) == [FAR]
    assert add(ids, far + 3) == [JUMPED]
    assert holes(ids) == [(6, far - 1, OPEN), (far + 1, far + 2, OPEN)]
    assert neighbours(ids) == [(edge(5), edge(far)), (edge(far), edge(far + 3))]
    assert (ids.last_id, ids.islands) == (far + 3, {})
    assert add(ids, far, 5) == [REPEATED] * 2
    assert add(ids, 6, far - 1, far + 1) == [FILLED] * 3


def test_a_jump_that_is_just_not_far_needs_no_confirmation() -> None:
    ids = made(5)
    assert add(ids, 5 + ids_module.FAR) == [JUMPED]
    assert ids.missing() == ids_module.FAR - 1


def test_a_trade_of_the_old_range_between_them_denies_the_far_jump() -> None:
    for between in (6, 4):
        ids = made(5)
        assert add(ids, GARBAGE)[0] is FAR
        add(ids, between)
        assert add(ids, GARBAGE + 1) == [FAR]
        assert add(ids, 7)[0] in (NEXT, JUMPED)


def test_a_repeat_between_them_does_not_for_the_ledger_never_sees_it() -> None:
    ids = made(5)
    assert add(ids, GARBAGE, 5, GARBAGE + 1) == [FAR, REPEATED, JUMPED]


def test_two_absurd_ids_that_are_far_from_each_other_confirm_nothing() -> None:
    ids = made(5)
    assert add(ids, GARBAGE, GARBAGE // 2, GARBAGE - 1, GARBAGE) == [FAR, FAR, FAR, REPEATED]
    assert ids.last_id == 5


def test_what_came_alone_is_no_hole_when_the_range_comes_to_it() -> None:
    ids = made(5)
    far = 5 + ids_module.FAR + 1
    add(ids, far)
    add(ids, 6, 7)
    assert add(ids, far) == [REPEATED]
    assert add(ids, far + 1) == [JUMPED]
    assert holes(ids) == [(8, far - 1, OPEN)]
    assert (ids.found_trades, ids.islands) == (far - 8, {})
    assert add(ids, far) == [REPEATED]


def test_a_hole_of_nothing_but_what_came_alone_is_none() -> None:
    ids = made(5)
    far = 5 + ids_module.FAR + 1
    add(ids, far)
    add(ids, *range(6, 8))
    add(ids, far - 1)
    assert add(ids, far + 1) == [NEXT]
    assert holes(ids) == [(8, far - 2, OPEN)]
    assert ids.found == 1


def test_a_stream_trade_far_below_the_first_is_taken_for_itself_alone() -> None:
    ids = made(10_000)
    below = 10_000 - ids_module.NEAR - 1
    assert add(ids, below, below) == [FAR, REPEATED]
    assert add(ids, below + 1) == [NEXT], "as near as may be"
    assert ids.first_id == below + 1
    assert add(ids, 10_005) == [JUMPED]
    assert add(ids, below) == [REPEATED], "a jump above does not make it forgotten"
    assert add(ids, below - 2) == [NEXT]
    assert holes(ids)[0] == (below - 1, below - 1, OPEN), "nor is it missing"
    assert add(ids, below) == [REPEATED]


def test_ids_that_came_alone_are_bounded() -> None:
    ids = made(5)
    many = [GARBAGE - 10**7 * n for n in range(3 * ids_module.MAX_ISLANDS)]
    assert set(add(ids, *many)) == {FAR}
    assert len(ids.islands) == ids_module.MAX_ISLANDS
    assert ids.knows(many[-1])
    assert add(ids, 6) == [NEXT]


# --- bounds


def test_of_a_hole_too_large_the_older_part_is_beyond() -> None:
    ids = made(5)
    assert add(ids, 16, max_trades=4) == [JUMPED]
    assert holes(ids) == [(6, 11, BEYOND), (12, 15, OPEN)]
    old, new = ids.holes
    assert (old.before, old.after, new.after) == (edge(5), None, edge(16))
    assert (ids.found, ids.found_trades) == (1, 10)
    assert (ids.missing(), ids.missing(BEYOND)) == (4, 6)
    assert list(ids.open_holes()) == [new]


def test_the_part_that_is_asked_for_begins_about_when_it_was_made() -> None:
    ids = Ids(trade(0))
    late = trade(1001)._replace(time_us=START_US + 100_100)
    ids.add(late, STREAM, "gap", NOW_US, 400, 0)
    before = ids.holes[1].before
    assert before is not None
    assert (before.trade_id, before.mark) == (600, UNKNOWN)
    assert before.time_us == pytest.approx(START_US + 60_000, abs=101)


def test_a_hole_of_just_the_bound_is_open_as_a_whole() -> None:
    ids = made(5)
    add(ids, 10, max_trades=4)
    assert holes(ids) == [(6, 9, OPEN)]


def test_with_a_bound_of_zero_nothing_is_asked_for() -> None:
    ids = made(5)
    assert add(ids, 9, max_trades=0) == [JUMPED]
    assert holes(ids) == [(6, 8, BEYOND)]
    assert neighbours(ids) == [(edge(5), edge(9))]
    assert add(ids, 7, max_trades=0) == [FILLED]


def test_an_absurd_jump_that_is_confirmed_asks_for_no_more_than_the_bound() -> None:
    ids = made(5)
    assert add(ids, GARBAGE, GARBAGE + 1, max_trades=100) == [FAR, JUMPED]
    assert ids.missing() == 100
    assert ids.missing(BEYOND) == GARBAGE - 6 - 100


def test_counts_fit_a_database_after_any_number_of_absurd_jumps() -> None:
    ids = made(5)
    for round_ in range(1, 4):
        add(ids, GARBAGE, GARBAGE + 1, start_us=ids.epoch_us)
        late_us = START_US + round_ * 10**10
        assert add(ids, 5, 6, start_us=late_us) == [FAR, EPOCH]
    assert ids.found_trades == MAX_TRADE_ID


# --- epochs


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


# --- deliveries that fail


def test_a_trade_that_could_not_be_delivered_is_missing() -> None:
    ids = made(5, 6, 7)
    ids.miss(6, "dead", NOW_US, START_US + 6)
    assert holes(ids) == [(6, 6, OPEN)]
    assert ids.holes[0].cause == "dead"
    assert ids.holes[0].before == Edge(5, START_US + 5, UNKNOWN)
    assert not ids.knows(6)
    assert add(ids, 8, 6, 6) == [NEXT, FILLED, REPEATED]
    assert ids.holes == []


def test_the_last_trade_may_be_the_one_that_could_not_be_delivered() -> None:
    ids = made(5, 6)
    ids.miss(6, "dead", NOW_US)
    assert (ids.last_id, holes(ids)) == (6, [(6, 6, OPEN)])
    assert add(ids, 7) == [NEXT]
    assert holes(ids) == [(6, 6, OPEN)]
    assert add(ids, 6) == [FILLED]


def test_the_only_trade_may_be_the_one_that_could_not_be_delivered() -> None:
    ids = made(5)
    ids.miss(5, "dead", NOW_US)
    assert (ids.first_id, ids.last_id, holes(ids)) == (5, 5, [(5, 5, OPEN)])
    assert add(ids, 6, 5, 5) == [NEXT, FILLED, REPEATED]


def test_what_is_not_known_can_not_be_taken_back() -> None:
    ids = made(5, 9)
    for number in (3, 7, 10, GARBAGE):
        ids.miss(number, "dead", NOW_US)
    assert holes(ids) == [(6, 8, OPEN)]


def test_what_came_alone_can_be_taken_back() -> None:
    ids = made(5)
    add(ids, GARBAGE)
    ids.miss(GARBAGE, "dead", NOW_US)
    assert (ids.holes, ids.islands) == ([], {})
    assert add(ids, GARBAGE + 1) == [FAR], "what is dead confirms no jump"
    assert add(ids, GARBAGE + 2) == [JUMPED]
    assert not ids.knows(GARBAGE)


def test_what_looked_like_the_first_of_an_epoch_can_be_taken_back() -> None:
    for number in (5, 55):
        ids = made(*range(50, 60))
        add(ids, number, start_us=LATER_US)
        ids.miss(number, "dead", NOW_US, LATER_US + number)
        assert (ids.holes, ids.islands) == ([], {}), "an older trade has that id"
        assert add(ids, number + 1, start_us=LATER_US) == [FAR], "what is dead confirms no epoch"
        assert add(ids, number + 2, start_us=LATER_US) == [EPOCH]
    ids = made(*range(50, 60))
    add(ids, 55, start_us=LATER_US)
    ids.miss(55, "dead", NOW_US, START_US + 55)
    assert holes(ids) == [(55, 55, OPEN)], "the older one itself"


# --- what the exchange itself does not have


def test_shown_once_is_not_enough() -> None:
    ids = made(5, 9)
    assert ids.prove(6, 8, NOW_US, 60 * SECOND_US) == 0
    assert holes(ids) == [(6, 8, OPEN)]
    assert (ids.holes[0].proofs, ids.holes[0].proved_us) == (1, NOW_US)


def test_shown_twice_too_soon_is_not_enough() -> None:
    ids = made(5, 9)
    ids.prove(6, 8, NOW_US, 60 * SECOND_US)
    assert ids.prove(6, 8, NOW_US + 60 * SECOND_US - 1, 60 * SECOND_US) == 0
    assert holes(ids) == [(6, 8, OPEN)]
    assert ids.prove(6, 8, NOW_US + 60 * SECOND_US, 60 * SECOND_US) == 3, "counted from the first"
    assert holes(ids) == [(6, 8, ABSENT)]


def test_shown_twice_is_absent_and_not_asked_for() -> None:
    ids = made(5, 9)
    ids.prove(6, 8, NOW_US, SECOND_US)
    assert ids.prove(6, 8, NOW_US + SECOND_US, SECOND_US) == 3
    assert holes(ids) == [(6, 8, ABSENT)]
    assert neighbours(ids) == [(edge(5), edge(9))]
    assert (ids.missing(), ids.missing(ABSENT), list(ids.open_holes())) == (0, 3, [])
    assert ids.prove(6, 8, NOW_US + 9 * SECOND_US, SECOND_US) == 0, "once is enough"


def test_each_piece_is_proved_by_itself() -> None:
    ids = made(1, 12)
    assert ids.prove(4, 6, NOW_US, SECOND_US) == 0
    assert [(h.first_id, h.last_id, h.proofs) for h in ids.holes] == [
        (2, 3, 0),
        (4, 6, 1),
        (7, 11, 0),
    ], "what was not shown is not proved with it"
    assert neighbours(ids) == [(edge(1), None), (None, None), (None, edge(12))]
    assert ids.prove(1, 12, NOW_US + SECOND_US, SECOND_US) == 3
    assert holes(ids) == [(2, 3, OPEN), (4, 6, ABSENT), (7, 11, OPEN)]
    assert ids.prove(1, 8, NOW_US + 2 * SECOND_US, SECOND_US) == 4
    assert holes(ids) == [(2, 8, ABSENT), (9, 11, OPEN)]
    assert neighbours(ids) == [(edge(1), None), (None, edge(12))]


def test_a_proof_over_several_holes_settles_what_of_them_it_covers() -> None:
    ids = made(1, 4, 8, 12)
    for now_us in (NOW_US, NOW_US + SECOND_US):
        ids.prove(3, 10, now_us, SECOND_US)
    assert holes(ids) == [
        (2, 2, OPEN),
        (3, 3, ABSENT),
        (5, 7, ABSENT),
        (9, 10, ABSENT),
        (11, 11, OPEN),
    ]


def test_a_proof_of_what_is_there_changes_nothing() -> None:
    ids = made(1, 2, 3)
    assert ids.prove(1, 3, NOW_US, 0) == 0
    assert (ids.holes, ids.changes) == ([], {})


def test_a_clock_set_back_makes_the_wait_neither_endless_nor_shorter() -> None:
    ids = made(5, 9)
    ids.prove(6, 8, NOW_US, 60 * SECOND_US)
    back_us = NOW_US - 3600 * SECOND_US
    assert ids.prove(6, 8, back_us, 60 * SECOND_US) == 0
    assert ids.prove(6, 8, back_us + 59 * SECOND_US, 60 * SECOND_US) == 0
    assert ids.prove(6, 8, back_us + 60 * SECOND_US, 60 * SECOND_US) == 3


@pytest.mark.parametrize("state", [ABSENT, BEYOND])
def test_a_trade_that_comes_after_all_fills_what_was_settled(state: State) -> None:
    ids = made(5, 9)
    if state is ABSENT:
        ids.prove(6, 8, NOW_US, 0)
        ids.prove(6, 8, NOW_US, 0)
    else:
        assert ids.give_up(6, 8) == 3
    assert holes(ids) == [(6, 8, state)]
    assert add(ids, 7) == [FILLED]
    assert holes(ids) == [(6, 6, state), (8, 8, state)]
    assert neighbours(ids) == [(edge(5), edge(7)), (edge(7), edge(9))]
    assert add(ids, 8, 6, origin=BACKFILL) == [FILLED] * 2
    assert ids.holes == []


def test_what_is_given_up_is_not_asked_for() -> None:
    ids = made(1, 12)
    assert ids.give_up(0, 4) == 3
    assert holes(ids) == [(2, 4, BEYOND), (5, 11, OPEN)]
    assert ids.give_up(0, 4) == 0
    ids.prove(5, 6, NOW_US, 0)
    ids.prove(5, 6, NOW_US, 0)
    assert ids.give_up(0, 100) == 5, "what is absent stays absent"
    assert holes(ids) == [(2, 4, BEYOND), (5, 6, ABSENT), (7, 11, BEYOND)]


# --- bounded memory


def test_with_too_many_holes_the_oldest_are_folded() -> None:
    ids = made(*range(0, 2 * ids_module.MAX_HOLES + 1, 2))
    assert len(ids.holes) == ids_module.MAX_HOLES
    assert (ids.folded, ids.folded_until) == (0, 0)
    last = ids.last_id
    add(ids, last + 2, last + 4)
    assert len(ids.holes) == ids_module.MAX_HOLES
    assert (ids.folded, ids.folded_until) == (2, 4)
    assert holes(ids)[0] == (5, 5, OPEN)
    assert add(ids, 1, 3, 5) == [REPEATED, REPEATED, FILLED]
    assert ids.missing() + ids.folded + 1 == ids.found_trades


def test_a_hole_that_was_filled_does_not_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "MAX_HOLES", 3)
    ids = made(0)
    for start in range(0, 1000, 10):
        assert REPEATED not in add(ids, *(start + number for number in (2, 9, 3, 8, 4, 5, 6, 7, 1)))
        assert (ids.holes, ids.folded) == ([], 0)
        add(ids, start + 10)


def test_a_late_trade_below_does_not_lower_what_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "MAX_HOLES", 2)
    ids = made(100, 102, 104, 106)
    assert (ids.folded, ids.folded_until) == (1, 102)
    add(ids, 90)
    assert (ids.folded, ids.folded_until) == (10, 102)
    assert holes(ids) == [(103, 103, OPEN), (105, 105, OPEN)]


def test_a_proof_that_splits_a_hole_while_all_places_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is folded at that moment must not be left in the changes."""
    monkeypatch.setattr(ids_module, "MAX_HOLES", 2)
    ids = made(0, 10, 20)
    ids.prove(4, 6, NOW_US, 0)
    assert ids.prove(4, 6, NOW_US, 0) == 0
    assert holes(ids) == [(7, 9, OPEN), (11, 19, OPEN)]
    assert ids.folded == 6
    assert ids.changes is not None
    assert {first_id for first_id, hole in ids.changes.items() if hole} == {7, 11}


def test_what_is_settled_is_folded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "MAX_HOLES", 3)
    ids = made(0, 2, 4, 6)
    ids.give_up(3, 3)
    assert add(ids, 8, 10) == [JUMPED] * 2
    assert holes(ids) == [(5, 5, OPEN), (7, 7, OPEN), (9, 9, OPEN)]
    assert (ids.folded, ids.folded_until) == (2, 4)
    ids.give_up(7, 7)
    add(ids, 12)
    assert [hole[0] for hole in holes(ids)] == [5, 9, 11]


def test_holes_that_touch_and_mean_the_same_are_one() -> None:
    ids = made(1, 12)
    for first, last in ((2, 4), (8, 11), (5, 7)):
        ids.give_up(first, last)
    assert holes(ids) == [(2, 11, BEYOND)]
    assert neighbours(ids) == [(edge(1), edge(12))]
    assert ids.changes is not None
    assert [n for n, hole in ids.changes.items() if hole is not None] == [2]
    ids = made(*range(10))
    for number in (3, 5, 4):
        ids.miss(number, "dead", NOW_US + number)
    assert holes(ids) == [(3, 5, OPEN)]
    assert ids.holes[0].opened_us == NOW_US + 3
    ids.miss(6, "other", NOW_US)
    assert holes(ids) == [(3, 5, OPEN), (6, 6, OPEN)], "what befell them differs"


def test_what_was_proved_is_not_one_with_what_was_not() -> None:
    for first, last in ((2, 4), (5, 11)):
        ids = made(1, 12)
        ids.prove(first, last, NOW_US, SECOND_US)
        assert len(ids.holes) == 2
        assert ids.prove(1, 12, NOW_US + SECOND_US, SECOND_US) == last - first + 1
    ids = made(1, 12)
    for _ in range(2):
        ids.prove(2, 4, NOW_US, SECOND_US)
        ids.prove(5, 11, NOW_US, SECOND_US)
        assert holes(ids) == [(2, 11, OPEN)], "at the same time"


# --- figures


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("2688.30", "0.1"), ("2688.30000", "0.10000000")),
        (("2688", "1"), ("2688.0", "1.00")),
        (("1e-7", "100"), ("0.0000001", "1E+2")),
        (("0.0", "0"), ("0", "0.000")),
    ],
)
def test_a_mark_does_not_mind_how_a_decimal_is_written(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    marks = {
        mark_of(trade(1)._replace(price=price, quantity=quantity))
        for price, quantity in (one, other)
    }
    assert len(marks) == 1


def test_a_mark_tells_other_figures_apart() -> None:
    plain = trade(1)._replace(price="100", quantity="10")
    others = [
        plain._replace(price="10"),
        plain._replace(price="1", quantity="0010"),
        plain._replace(quantity="1"),
        plain._replace(quantity="10.01"),
        plain._replace(side=SELL),
    ]
    assert len({mark_of(other) for other in (plain, *others)}) == 6


# --- against a model


class Missing:
    """A missing id of the model."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.proofs = 0
        self.proved_us = 0


def _proved(one: Missing | Hole) -> tuple[object, ...]:
    """What becomes of it; what is settled was proved once and for all."""
    return (one.state, one.proofs, one.proved_us) if one.state is OPEN else (one.state,)


class Model:
    """The same with plain sets: every id by itself."""

    def __init__(self, first: int) -> None:
        self.epoch = 0
        self.start_us = START_US
        self.begin(first)

    def begin(self, first: int) -> None:
        self.first = self.last = first
        self.known = {first}
        self.missing: dict[int, Missing] = {}
        self.alone: list[int] = []
        self.candidate: int | None = None
        self.anew: dict[int, int] = {}
        self.anew_last = -1
        self.strays: dict[int, int] = {}
        self.times: dict[int, int] = {}
        """Of those that do not have the time that belongs to their id."""
        self.begin_us = self.newest_us = self.time_us(first)

    def time_us(self, number: int) -> int:
        return self.times.get(number, trade(number, self.start_us).time_us)

    def begun_by(self, number: int, time_us: int) -> list[int]:
        """The ids of the epoch that, as that trade, if it is newer, shows, has begun."""
        if self.anew_last != self.last or number > self.last:
            return []
        times = {**self.anew, number: time_us}
        begun = [number]
        for step in (1, -1):
            at = number
            for other in sorted(times)[::step]:
                low, high = min(at, other), max(at, other)
                late = times[high] <= times[low] - ids_module.EPOCH_US
                if 0 < (other - at) * step <= ids_module.FAR and not late:
                    begun.append(other)
                    at = other
        return sorted(begun) if len(begun) > 1 else []

    def _stray(self, number: int, time_us: int) -> None:
        self.strays[number] = time_us
        if len(self.strays) > ids_module.MAX_ANEW:
            del self.strays[next(iter(self.strays))]

    def _strand(self, number: int) -> Outcome:
        if number in self.alone:
            return FAR
        self.known.add(number)
        self.alone.append(number)
        if len(self.alone) > ids_module.MAX_ISLANDS:
            self.known.remove(self.alone.pop(0))
        return FAR

    def _lose(self, first: int, last: int, max_trades: int) -> bool:
        lost = [number for number in range(first, last + 1) if number not in self.known]
        for number in lost:
            self.missing[number] = Missing(OPEN if number > last - max_trades else BEYOND)
        return bool(lost)

    def add(self, number: int, origin: int, time_us: int, max_trades: int) -> Outcome:
        outcome = self._add(number, origin, time_us, max_trades)
        self.alone = [n for n in self.alone if not self.first <= n <= self.last]
        return outcome

    def _add(self, number: int, origin: int, time_us: int, max_trades: int) -> Outcome:
        known = self.first <= number <= self.last and number in self.known
        if number > self.last or not (known or origin == BACKFILL):
            strays = self.strays.get(number) == time_us
            old = self.epoch and time_us <= self.begin_us - ids_module.EPOCH_US
            if strays or old:
                if strays or origin != STREAM:
                    return REPEATED
                self._stray(number, time_us)
                return FAR
        if number > self.last:
            return REPEATED if number in self.known else self._add_above(number, max_trades)
        newer = origin != BACKFILL and time_us >= self.newest_us + ids_module.EPOCH_US
        if newer and self.anew.get(number) == time_us:
            return REPEATED
        if newer and (begun := self.begun_by(number, time_us)):
            times = {**self.anew, number: time_us}
            self.epoch += 1
            self.start_us = times[begun[0]] - trade(begun[0], 0).time_us
            self.begin(begun[0])
            self.times = {each: times[each] for each in begun}
            for each in begun[1:]:
                self._lead_to(each, max_trades)
            for other, other_us in times.items():
                if other not in begun:
                    self._stray(other, other_us)
            return EPOCH
        if number in self.missing:
            del self.missing[number]
            self.known.add(number)
            self.times[number] = time_us
            self.candidate = None
            return FILLED
        if newer:
            if self.anew_last != self.last:
                self.anew, self.anew_last = {}, self.last
            self.anew.pop(number, None)
            self.anew[number] = time_us
            if len(self.anew) > ids_module.MAX_ANEW:
                del self.anew[next(iter(self.anew))]
            return self._strand(number) if number < self.first else FAR
        if number in self.known or origin != STREAM:
            return REPEATED
        self.candidate = None
        if self.first - number > ids_module.NEAR:
            return self._strand(number)
        self._lose(number + 1, self.first - 1, 10**6)
        self.known.add(number)
        self.times[number] = time_us
        self.first = number
        return NEXT

    def _add_above(self, number: int, max_trades: int) -> Outcome:
        tops = [number]
        if number - self.last > ids_module.FAR:
            candidate = self.candidate
            if candidate is None or not 0 < number - candidate <= ids_module.FAR:
                self.candidate = number
                return self._strand(number)
            tops.insert(0, candidate)
        self.candidate = None
        jumped = False
        for top in tops:
            jumped |= self._lead_to(top, max_trades)
        return JUMPED if jumped else NEXT

    def _lead_to(self, top: int, max_trades: int) -> bool:
        lost = self._lose(self.last + 1, top - 1, max_trades)
        self.known.add(top)
        self.last = top
        self.newest_us = max(self.newest_us, self.time_us(top))
        return lost

    def miss(self, number: int, time_us: int) -> None:
        if self.anew.get(number) == time_us:
            del self.anew[number]
            if number in self.alone:
                self.alone.remove(number)
                self.known.remove(number)
            return
        if self.strays.get(number) == time_us:
            del self.strays[number]
            return
        if number not in self.known:
            return
        self.known.remove(number)
        if number in self.alone:
            self.alone.remove(number)
            self.candidate = None
        else:
            self.missing[number] = Missing(OPEN)

    def prove(self, first: int, last: int, now_us: int, confirm_after_us: int) -> int:
        absent = 0
        for number, missing in self.missing.items():
            if not first <= number <= last or missing.state is not OPEN:
                continue
            missing.proved_us = min(missing.proved_us, now_us)
            if not missing.proofs:
                missing.proofs, missing.proved_us = 1, now_us
            elif now_us - missing.proved_us >= confirm_after_us:
                missing.proofs += 1
                missing.state = ABSENT
                absent += 1
        return absent

    def give_up(self, first: int, last: int) -> int:
        given_up = [
            missing
            for number, missing in self.missing.items()
            if first <= number <= last and missing.state is OPEN
        ]
        for missing in given_up:
            missing.state = BEYOND
        return len(given_up)

    def fold(self, until: int, count: int, left: set[int]) -> None:
        """So many of the oldest missing ids, settled ones first, are taken for known from now
        on."""
        folded = self.missing.keys() - left
        assert len(folded) == count
        assert not folded or max(folded) < until
        settled = [n for n in self.missing if self.missing[n].state is not OPEN]
        for number in folded:
            kept = left & set(settled) if number in settled else left & set(self.missing)
            assert all(number < other for other in kept)
        for number in folded:
            del self.missing[number]
            self.known.add(number)


def told(hole: Hole) -> tuple[object, ...]:
    """All that is kept of a hole."""
    return tuple(getattr(hole, name) for name in Hole.__slots__)


def told_of(ids: Ids) -> dict[str, object]:
    """All that is kept of a symbol, but for what the caller empties."""
    passing = ("changes", "fills", "ended", "holes")
    kept = {name: copy(getattr(ids, name)) for name in Ids.__slots__ if name not in passing}
    return {**kept, "holes": [told(hole) for hole in ids.holes], "islands": list(ids.islands)}


class Run:
    """One random sequence of operations, checked against the model after each."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        first = self.chance.randrange(100, 200)
        self.model = Model(first)
        self.ids = Ids(trade(first))
        self.folded = 0
        self.now_us = NOW_US
        self.shadow: dict[int, tuple[object, ...]] = {}
        self.missing_ended = 0
        self.outcomes = dict.fromkeys(Outcome, 0)

    def step(self) -> None:
        operation = self.chance.choices(
            (self._add, self._begin, self._miss, self._prove, self._give_up, self._try),
            (20, 2, 2, 3, 1, 1),
        )[0]
        operation()
        self._check()
        if self.chance.random() < 0.3:
            self._empty()
        if self.chance.random() < 0.1:
            self._copy()

    def _number(self) -> int:
        """Any id, near or far, known, missing or new."""
        model, chance = self.model, self.chance
        kind = chance.randrange(10)
        if kind < 2:
            return model.last + 1
        if kind < 4:
            return model.last + chance.randrange(1, 8)
        if kind < 6 and model.missing:
            return chance.choice(list(model.missing))
        if kind < 7:
            return chance.choice(list(model.known) or [model.first])
        if kind < 8 and model.candidate is not None:
            return model.candidate + chance.randrange(-2, 5)
        if kind < 9 and (model.anew or model.strays):
            near = chance.choice([*model.anew, *model.strays])
            return max(0, near + chance.choice((-1, 0, 1, 1, 1, 2, 4, 29, 30, 31)))
        return max(0, chance.randrange(model.first - 20, model.last + 60))

    def _add(self) -> None:
        number = self._number()
        origin = self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
        usual = number > self.model.last or self.chance.random() > 0.1
        time_us = self.model.time_us(number) if usual else None
        if self.model.epoch and origin != BACKFILL and self.chance.random() < 0.05:
            time_us = self.model.begin_us - ids_module.EPOCH_US
        self._take(number, origin, time_us)

    def _begin(self) -> None:
        """Several of an epoch, some of them perhaps of no use."""
        number = self.chance.randint(self.model.first - 20, self.model.last)
        for _ in range(self.chance.randrange(1, 4)):
            if 0 <= number <= self.model.last:
                self._take(number, self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL)))
                self._check()
            number += self.chance.choice((-4, -1, 0, 1, 1, 1, 2, 4, 29, 30, 31, -30))

    def _take(self, number: int, origin: int, time_us: int | None = None) -> None:
        model = self.model
        max_trades = self.chance.choice((10**6, 10**6, 3, 1, 0))
        if time_us is None:
            time_us = self._newer_us(number, origin)
        told_trade = trade(number, model.start_us)._replace(time_us=time_us)
        outcome = model.add(number, origin, told_trade.time_us, max_trades)
        held = sum(hole.size for hole in self.ids.holes) + self.ids.folded
        sequence = self.chance.randrange(10**6)
        found = self.ids.add(told_trade, origin, "gap", self.now_us, max_trades, sequence)
        assert found is outcome
        assert self.ids.knows(number) == (number in model.known)
        self.outcomes[outcome] += 1
        if outcome is EPOCH:
            self.folded = 0
            self.missing_ended += held
            assert self.ids.ended[-1].missing == held
        assert (self.ids.sequence == sequence) or outcome not in (JUMPED, EPOCH)

    def _newer_us(self, number: int, origin: int) -> int:
        """A time for an old id that is newer than everything known, if it may have one."""
        model, chance = self.model, self.chance
        if model.anew and origin != BACKFILL:
            # If it confirms the epoch, it must have the time that belongs to its id there.
            first = chance.choice(list(model.anew))
            time_us = model.anew[first] + number - first
            if model.begun_by(number, time_us) or (
                model.anew_last == model.last and number not in model.missing
            ):
                return time_us
            if number == first and number in model.known and chance.random() < 0.5:
                return time_us
        newer_us = chance.choice((-1, 0, 5))
        begins = newer_us >= 0 and origin != BACKFILL
        if number in model.known or (begins and number not in model.missing):
            return model.newest_us + ids_module.EPOCH_US + newer_us
        return model.time_us(number)

    def _miss(self) -> None:
        number, time_us = self._number(), self.chance.choice((0, START_US))
        if (anew := self.model.anew or self.model.strays) and self.chance.random() < 0.1:
            number, time_us = self.chance.choice(list(anew.items()))
        self.model.miss(number, time_us)
        self.ids.miss(number, "dead", self.now_us, time_us)

    def _prove(self) -> None:
        self.now_us += self.chance.choice((0, 1, SECOND_US, SECOND_US, -SECOND_US // 2))
        first, last = sorted((self._number(), self._number()))
        absent = self.model.prove(first, last, self.now_us, SECOND_US)
        assert self.ids.prove(first, last, self.now_us, SECOND_US) == absent

    def _give_up(self) -> None:
        first = self._number()
        last = first + self.chance.randrange(4)
        given_up = self.model.give_up(first, last)
        assert self.ids.give_up(first, last) == given_up

    def _try(self) -> None:
        first = self._number()
        if first <= self.model.last:
            self.ids.tried(first, self.model.last, self.chance.randrange(5))

    def _check(self) -> None:
        ids, model = self.ids, self.model
        left = {n for hole in ids.holes for n in range(hole.first_id, hole.last_id + 1)}
        model.fold(ids.folded_until, ids.folded - self.folded, left)
        self.folded = ids.folded
        assert len(ids.holes) <= ids_module.MAX_HOLES
        assert (ids.epoch, ids.first_id, ids.last_id) == (model.epoch, model.first, model.last)
        assert (ids.newest_us, list(ids.islands)) == (model.newest_us, model.alone)
        before = ids.first_id - 1
        for hole in ids.holes:
            assert before < hole.first_id <= hole.last_id <= ids.last_id
            before = hole.last_id
        self._check_missing()
        for state in State:
            count = sum(missing.state is state for missing in model.missing.values())
            assert ids.missing(state) == count
        filled = ids.late + ids.backfilled + self.missing_ended
        assert ids.found_trades == filled + len(model.missing) + ids.folded
        for _ in range(5):
            number = self._number()
            assert ids.knows(number) == (number in model.known)
            assert (ids.hole_of(number) is not None) == (number in model.missing)
            last = number + self.chance.randrange(5)
            within = [h for h in ids.holes if h.first_id <= last and h.last_id >= number]
            assert ids.holes_within(number, last) == within

    def _check_missing(self) -> None:
        ids, model = self.ids, self.model
        missing = {}
        for hole in ids.holes:
            for number in range(hole.first_id, hole.last_id + 1):
                missing[number] = _proved(hole)
            self._check_edge(hole.before, hole.first_id - 1)
            self._check_edge(hole.after, hole.last_id + 1)
        assert missing == {number: _proved(m) for number, m in model.missing.items()}
        for left, right in itertools.pairwise(ids.holes):
            one, other = ((*_proved(hole), hole.cause) for hole in (left, right))
            touch = left.last_id + 1 == right.first_id
            assert not touch or left.state != right.state or (left.state is OPEN and one != other)

    def _check_edge(self, found: Edge | None, number: int) -> None:
        if found is not None and found.mark != UNKNOWN:
            told_trade = trade(number)._replace(time_us=self.model.time_us(number))
            assert found == edge_of(told_trade)
        else:
            assert found is None or found.trade_id == number

    def _empty(self) -> None:
        """Does what the ledger does with the changes."""
        ids = self.ids
        if ids.changes is None:
            self.shadow = {hole.first_id: told(hole) for hole in ids.holes}
        for first_id, hole in (ids.changes or {}).items():
            if hole is None:
                self.shadow.pop(first_id, None)
            else:
                self.shadow[first_id] = told(hole)
        assert self.shadow == {hole.first_id: told(hole) for hole in ids.holes}
        ids.changes = {}
        ids.fills.clear()
        ids.ended.clear()

    def _copy(self) -> None:
        """Goes on with the original or with the copy; the other one stays as it was."""
        self._empty()
        other = self.ids.copy()
        assert told_of(other) == told_of(self.ids)
        assert (other.changes, other.fills, other.ended) == ({}, [], [])
        before = told_of(other)
        if self.chance.random() < 0.5:
            self.ids, other = other, self.ids
        number = self._number()
        other.miss(number, "other", 1)
        other.prove(0, 10**6, 1, 0)
        other.give_up(0, 10**6)
        for _ in range(3):
            other.add(trade(self._number()), STREAM, "other", 1, 5, 1)
        assert told_of(self.ids) == before
        self.ids.changes = {}


@pytest.fixture(params=[(30, 5, 3, 10_000), (30, 5, 2, 4)], ids=["unbounded", "few holes"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that random ids come to all of them."""
    names = ("FAR", "NEAR", "MAX_ISLANDS", "MAX_HOLES")
    for name, bound in zip(names, request.param, strict=True):
        monkeypatch.setattr(ids_module, name, bound)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small")
def test_any_sequence_of_events_leaves_what_plain_sets_would(full: bool) -> None:
    outcomes = dict.fromkeys(Outcome, 0)
    for seed in range(SEEDS * 10 if full else SEEDS):
        run = Run(seed)
        run.outcomes = outcomes
        for step in range(40):
            try:
                run.step()
            except Exception as error:
                raise AssertionError(f"seed {seed}, step {step}: {error}") from error
    assert min(outcomes.values()) > SEEDS // 5
