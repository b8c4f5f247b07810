"""The ids of a symbol: what is new, what is a repeat, and what is too far to be believed."""

from __future__ import annotations

import pytest
from ids_rig import (
    FAR,
    FILLED,
    GARBAGE,
    JUMPED,
    NEXT,
    NOW_US,
    OPEN,
    REPEATED,
    START_US,
    add,
    edge,
    holes,
    made,
    neighbours,
    trade,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.holes import mark_of
from feedmono.delivery.ids import Ids
from feedmono.trade import BACKFILL, MAX_TRADE_ID, SELL, SNAPSHOT, STREAM

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


def test_the_trade_that_confirms_a_far_jump_is_not_far_from_it() -> None:
    far = 5 + ids_module.FAR + 1
    assert add(made(5), far, far + ids_module.FAR) == [FAR, JUMPED]
    assert add(made(5), far, far + ids_module.FAR + 1) == [FAR, FAR]


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


# --- figures


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("2688.30", "0.1"), ("2688.30000", "0.10000000")),
        (("2688", "1"), ("2688.0", "1.00")),
        (("1e-7", "100"), ("0.0000001", "1E+2")),
        (("0.0", "0"), ("0", "0.000")),
        (("1.50e3", "1.5E+3"), ("1500", "1500.0")),
        (("1.25e-2", "0"), ("0.01250", "0")),
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


def test_of_a_new_hole_nothing_was_asked_or_proved() -> None:
    (hole,) = made(5, 9).holes
    assert (hole.tries, hole.proofs, hole.proved_us, hole.due_s) == (0, 0, 0, 0.0)


def test_a_mark_tells_other_figures_apart() -> None:
    plain = trade(1)._replace(price="100", quantity="10")
    others = [
        plain._replace(price="10"),
        plain._replace(price="1", quantity="0010"),
        plain._replace(quantity="1"),
        plain._replace(quantity="10.01"),
        plain._replace(side=SELL),
        *(plain._replace(price=f"0.{'1' * 40}{last}") for last in "123"),
    ]
    assert len({mark_of(other) for other in (plain, *others)}) == 9
