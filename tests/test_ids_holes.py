"""The ids that are missing: how many are asked for, what settles them, how many are remembered."""

from __future__ import annotations

import pytest
from ids_rig import (
    ABSENT,
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
    edge,
    holes,
    made,
    neighbours,
    trade,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.holes import UNKNOWN, Edge, State
from feedmono.delivery.ids import Ids
from feedmono.trade import BACKFILL, MAX_TRADE_ID, STREAM

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
    assert ids.holes[0].proofs == 2
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
