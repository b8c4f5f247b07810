"""Trades seen before are dropped, trades that come late are not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono.delivery import ids as arithmetic
from feedmono.delivery.ids import EPOCH_US, MAX_HOLES
from feedmono.delivery.seen import EXCHANGE, RESTART, UNSUBSCRIBED, Counts, Seen
from feedmono.trade import BACKFILL, BUY, SNAPSHOT, STREAM, Trade

START_US = 1_700_000_000_000_000


class SeenIds(Seen):
    """A new one, that numbers the frames by itself."""

    def __init__(self) -> None:
        super().__init__({}, 10**6)
        self.frames = 0

    def admit(
        self, trades: Sequence[Trade], origin: int = STREAM, sequence: int = 0, now_us: int = 0
    ) -> Sequence[Trade]:
        self.frames += 1
        return super().admit(trades, origin, sequence or self.frames, now_us)

    def last(self, symbol: str) -> int | None:
        ids = self.symbols.get(symbol)
        return ids.last_id if ids is not None else None


def trades(*ids: int, symbol: str = "BTC/USD", time_us: int = START_US) -> tuple[Trade, ...]:
    return tuple(Trade(symbol, trade_id, "1.0", "1.0", BUY, time_us) for trade_id in ids)


def ids(*admitted: Trade) -> list[int]:
    return [trade.trade_id for trade in admitted]


def admitted(seen_ids: SeenIds, *numbers: int, symbol: str = "BTC/USD") -> list[int]:
    return ids(*seen_ids.admit(trades(*numbers, symbol=symbol)))


class Model:
    """The same with plain sets."""

    def __init__(self) -> None:
        self.known: dict[str, set[int]] = {}

    def admit(self, frame: tuple[Trade, ...], origin: int) -> list[Trade]:
        new = []
        firsts = {symbol: min(known) for symbol, known in self.known.items()}
        for trade in frame:
            known = self.known.setdefault(trade.symbol, set())
            repeats = origin == SNAPSHOT and trade.trade_id < firsts.get(trade.symbol, 0)
            if not repeats and trade.trade_id not in known:
                known.add(trade.trade_id)
                new.append(trade)
        return new


FRAMES = st.lists(
    st.lists(
        st.builds(
            lambda symbol, number: trades(number, symbol=symbol)[0],
            st.sampled_from(["BTC/USD", "ETH/USD"]),
            st.integers(0, 40),
        ),
        max_size=6,
    ).map(tuple),
    max_size=30,
)


@settings(derandomize=True, max_examples=200)
@given(frames=FRAMES, data=st.data())
def test_the_ranges_admit_what_plain_sets_would(
    frames: list[tuple[Trade, ...]], data: st.DataObject
) -> None:
    seen_ids, model = SeenIds(), Model()
    dropped = 0
    for frame in frames:
        origin = data.draw(st.sampled_from([STREAM, SNAPSHOT]))
        expected = model.admit(frame, origin)
        assert list(seen_ids.admit(frame, origin)) == expected
        dropped += len(frame) - len(expected)
        assert seen_ids.dropped == dropped
        for symbol, known in model.known.items():
            assert seen_ids.last(symbol) == max(known)


@settings(derandomize=True, max_examples=150)
@given(frames=FRAMES, limit=st.integers(2, 4))
def test_forgotten_holes_are_the_only_loss(frames: list[tuple[Trade, ...]], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "MAX_HOLES", limit)
        seen_ids = SeenIds()
        given_out: set[tuple[str, int]] = set()
        for frame in frames:
            last = {symbol: seen_ids.last(symbol) for symbol in ("BTC/USD", "ETH/USD")}
            new = seen_ids.admit(frame)
            got = {(trade.symbol, trade.trade_id) for trade in new}
            assert len(got) == len(new)
            assert not got & given_out
            given_out |= got
            for trade in frame:
                before = last[trade.symbol]
                if before is None or trade.trade_id > before:
                    assert (trade.symbol, trade.trade_id) in got


def test_a_frame_of_new_trades_is_handed_on_as_it_is() -> None:
    seen_ids = SeenIds()
    for frame in (trades(5), trades(6), trades(7, 8, 9), trades(20), trades(15, 16), ()):
        assert seen_ids.admit(frame) is frame
    assert seen_ids.dropped == 0


def test_a_repeated_trade_is_dropped_and_counted() -> None:
    seen_ids = SeenIds()
    assert admitted(seen_ids, 5, 6, 7) == [5, 6, 7]
    assert admitted(seen_ids, 6, 7, 8) == [8]
    assert admitted(seen_ids, 8) == []
    assert seen_ids.dropped == 3


def test_a_trade_that_comes_late_fills_its_hole_once() -> None:
    seen_ids = SeenIds()
    assert admitted(seen_ids, 5) == [5]
    assert admitted(seen_ids, 9) == [9]
    assert admitted(seen_ids, 7) == [7]
    assert admitted(seen_ids, 6, 7, 8) == [6, 8]
    assert admitted(seen_ids, 5, 6, 7, 8, 9) == []


def test_a_snapshot_below_all_that_is_known_repeats_what_was_delivered_before() -> None:
    seen_ids = SeenIds()
    assert ids(*seen_ids.admit(trades(10, 11), STREAM)) == [10, 11]
    assert ids(*seen_ids.admit(trades(8, 9, 10, 12), SNAPSHOT)) == [12]
    assert seen_ids.dropped == 3


def test_a_late_trade_of_the_stream_below_all_that_is_known_is_new() -> None:
    """After a restart the first id known may be that of a trade that overtook another."""
    seen_ids = SeenIds()
    assert admitted(seen_ids, 10) == [10]
    assert admitted(seen_ids, 9) == [9]
    assert admitted(seen_ids, 3) == [3]
    assert admitted(seen_ids, 3, 9, 10) == []


def test_ids_that_begin_anew_are_new_trades_and_reported() -> None:
    seen_ids = SeenIds()
    for number in range(1, 6):
        seen_ids.admit(trades(number, time_us=START_US + number))
    later = START_US + 5 + EPOCH_US
    assert seen_ids.admit(trades(1, time_us=later - 1)) == (), "not new enough: a repeat"
    assert not seen_ids.begun_anew
    assert ids(*seen_ids.admit(trades(1, time_us=later))) == [1]
    assert (seen_ids.begun_anew, seen_ids.far) == ([], [("BTC/USD", 1)])
    assert seen_ids.admit(trades(1, time_us=later)) == (), "by another connection"
    assert ids(*seen_ids.admit(trades(2, time_us=later))) == [2]
    assert seen_ids.begun_anew == ["BTC/USD"]
    assert ids(*seen_ids.admit(trades(3, time_us=later))) == [3]
    assert admitted(seen_ids, 1, 2) == []
    assert len(seen_ids.far) == 1


def test_a_snapshot_of_ids_that_begin_anew_needs_no_other_to_confirm_it() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(*range(1000, 1100)))
    snapshot = trades(*range(1, 51), time_us=START_US + EPOCH_US)
    assert seen_ids.admit(snapshot, SNAPSHOT) is snapshot
    assert seen_ids.begun_anew == ["BTC/USD"]
    known = seen_ids.symbols["BTC/USD"]
    assert (known.epoch, known.first_id, known.last_id, known.holes) == (1, 1, 50, [])


def test_the_first_trades_of_an_epoch_in_another_order_are_handed_on_once() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(*range(1000, 1100)))
    for number in (2, 1, 3):
        new = trades(number, time_us=START_US + EPOCH_US)
        assert seen_ids.admit(new) == new
        assert seen_ids.admit(new) == ()
    known = seen_ids.symbols["BTC/USD"]
    assert (known.epoch, known.first_id, known.last_id, known.holes) == (1, 1, 3, [])


def test_a_late_trade_of_the_old_epoch_is_handed_on_and_takes_no_id() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(*range(1000, 1100)))
    later_us = START_US + EPOCH_US
    seen_ids.admit(trades(1098, 1099, time_us=later_us))
    for late in (1100, 1105):
        assert admitted(seen_ids, late, late) == [late]
        assert seen_ids.far[-1] == ("BTC/USD", late)
    assert ids(*seen_ids.admit(trades(1100, time_us=later_us))) == [1100]
    known = seen_ids.symbols["BTC/USD"]
    assert (known.last_id, known.holes, seen_ids.found) == (1100, [], 0)


def test_a_hole_at_the_beginning_of_an_epoch_has_its_cause() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(*range(1000, 1100)))
    seen_ids.happened("disconnect: lost", 2)
    seen_ids.admit(trades(1, 5, time_us=START_US + EPOCH_US), STREAM, 3)
    assert seen_ids.symbols["BTC/USD"].holes[0].cause == "disconnect: lost"
    assert (seen_ids.cause, seen_ids.found, seen_ids.found_trades) == ("disconnect: lost", 1, 3)
    assert seen_ids.touched == {"BTC/USD"}


def test_garbage_with_an_old_id_and_a_newer_time_doubles_nothing() -> None:
    later_us = START_US + 10 * EPOCH_US
    for first in (5, 1050):
        seen_ids = SeenIds()
        seen_ids.admit(trades(*range(1000, 1100)))
        for number in range(1100, 1110):
            garbage = first + number - 1100
            assert ids(*seen_ids.admit(trades(garbage, time_us=later_us))) == [garbage]
            assert admitted(seen_ids, number) == [number]
            assert admitted(seen_ids, number, number - 1) == []
        known = seen_ids.symbols["BTC/USD"]
        assert (known.epoch, known.first_id, known.last_id, known.holes) == (0, 1000, 1109, [])
        assert (seen_ids.begun_anew, len(seen_ids.far)) == ([], 10)
        assert seen_ids.found == 0


def test_ids_that_begin_anew_below_and_run_into_the_old_ones_lose_nothing() -> None:
    seen_ids = SeenIds()
    for number in range(2000, 2100):
        seen_ids.admit(trades(number, time_us=START_US + number))
    begin_us = START_US + 2100 + EPOCH_US
    for number in range(1990, 2200):
        assert ids(*seen_ids.admit(trades(number, time_us=begin_us + number))) == [number]
    assert seen_ids.begun_anew == ["BTC/USD"]
    assert seen_ids.dropped == 0


def test_a_clock_that_steps_back_makes_no_snapshot_new() -> None:
    seen_ids = SeenIds()
    ahead_us = START_US + 50_000_000
    for number in range(1, 40):
        seen_ids.admit(trades(number, time_us=ahead_us + number))
    for number in range(40, 50):
        seen_ids.admit(trades(number, time_us=START_US + number))
    repeated = trades(*range(1, 40), time_us=ahead_us) + trades(*range(40, 50), time_us=START_US)
    assert seen_ids.admit(repeated, SNAPSHOT) == ()
    assert not seen_ids.begun_anew


def test_a_trade_twice_in_one_frame_is_handed_on_once() -> None:
    assert admitted(SeenIds(), 4, 4, 5, 4) == [4, 5]


def test_symbols_have_ids_of_their_own() -> None:
    seen_ids = SeenIds()
    assert admitted(seen_ids, 5) == [5]
    assert admitted(seen_ids, 5, symbol="ETH/USD") == [5]
    mixed = trades(6) + trades(5, symbol="ETH/USD")
    assert seen_ids.admit(mixed) == trades(6)
    assert (seen_ids.last("BTC/USD"), seen_ids.last("ETH/USD")) == (6, 5)
    assert seen_ids.last("XRP/USD") is None


def test_one_absurd_id_does_not_drop_the_ones_below_it() -> None:
    seen_ids = SeenIds()
    assert admitted(seen_ids, 5) == [5]
    assert admitted(seen_ids, 2**63 - 1) == [2**63 - 1]
    assert admitted(seen_ids, 6) == [6]
    assert admitted(seen_ids, 7, 6, 9) == [7, 9]


def test_two_absurd_ids_with_ordinary_trades_between_do_not_confirm_each_other() -> None:
    seen_ids = SeenIds()
    for number in (5, 9 * 10**18, 6, 9 * 10**18 + 1, 7, 9 * 10**18 + 2, 8):
        assert admitted(seen_ids, number) == [number]
    known = seen_ids.symbols["BTC/USD"]
    assert (known.last_id, known.holes, len(seen_ids.far)) == (8, [], 3)


def test_with_too_many_holes_the_oldest_is_forgotten() -> None:
    seen_ids = SeenIds()
    end = 2 * MAX_HOLES + 2
    every_second = range(0, end, 2)
    for number in every_second:
        assert admitted(seen_ids, number) == [number]
    assert admitted(seen_ids, 1) == [1]  # The limit is reached, not passed: the hole is open.
    assert admitted(seen_ids, end, end + 2) != []
    assert admitted(seen_ids, 3) == []
    assert admitted(seen_ids, 5) == [5]


def test_a_hole_that_was_filled_does_not_count_as_one() -> None:
    seen_ids = SeenIds()
    for start in range(0, 20_000, 100):
        # Filled from below, from above, and in the middle.
        for number in (0, 2, 9, 3, 8, 4, 5, 6, 7):
            assert admitted(seen_ids, start + number) == [start + number]
        for number in range(10, 100):
            assert admitted(seen_ids, start + number) == [start + number]
        assert admitted(seen_ids, start + 9) == []
        if start:
            assert admitted(seen_ids, start + 1) == [start + 1]
    assert admitted(seen_ids, 1) == [1]


def test_one_frame_with_more_holes_than_can_be_kept_loses_none_of_its_trades() -> None:
    numbers = list(range(4 * MAX_HOLES, 0, -2))
    assert admitted(SeenIds(), *numbers) == numbers


def test_a_hole_is_laid_to_what_happened_first_since_the_last_trade() -> None:
    seen_ids = SeenIds()
    for trade_id, sequence in ((1, 1), (3, 2), (5, 10), (7, 20), (9, 30)):
        seen_ids.admit(trades(trade_id), STREAM, sequence)
        if sequence == 2:
            seen_ids.happened("ring full", 5)
            seen_ids.happened("disconnect: lost", 6)
        elif sequence == 10:
            seen_ids.happened("disconnect: silent", 15)
    causes = [hole.cause for hole in seen_ids.symbols["BTC/USD"].holes]
    assert causes == [EXCHANGE, "ring full", "disconnect: silent", EXCHANGE]


def test_a_hole_over_a_restart_of_which_nothing_else_is_known_is_laid_to_it() -> None:
    before = SeenIds()
    before.admit(trades(1), STREAM, 100)
    after = Seen(before.symbols, 10**6, sequence=100)
    after.admit(trades(3), STREAM, 101, 0)
    assert after.symbols["BTC/USD"].holes[0].cause == RESTART
    assert (after.found, after.found_trades) == (1, 1)


def test_trades_are_counted_by_how_they_came() -> None:
    seen_ids = SeenIds()
    for trade_id in (1, 5, 4):
        seen_ids.admit(trades(trade_id))
    seen_ids.admit(trades(2, 3, 6), BACKFILL)
    assert (seen_ids.late, seen_ids.backfilled, seen_ids.found, seen_ids.found_trades) == (
        1,
        3,
        1,
        3,
    )


def test_symbols_whose_holes_change_are_told_and_no_others() -> None:
    seen_ids = SeenIds()
    told = []
    for trade_id in (1, 2, 5, 6, 3, 4, 7):
        seen_ids.admit(trades(trade_id))
        told.append(sorted(seen_ids.touched))
        seen_ids.touched.clear()
    touched = ["BTC/USD"]
    assert told == [[], [], touched, [], touched, touched, []]


def test_what_was_counted_is_told_once() -> None:
    seen_ids = SeenIds()
    for trade_id in (1, 5, 4):
        seen_ids.admit(trades(trade_id))
    seen_ids.admit(trades(2), BACKFILL)
    assert seen_ids.take_counts() == Counts(found=1, found_trades=3, backfilled=1, late=1)
    assert seen_ids.take_counts() == Counts(0, 0, 0, 0)


def test_a_hole_over_a_time_in_which_nobody_wanted_the_symbol_is_laid_to_that() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(1), STREAM, 10)
    seen_ids.happened("ring full", 11)
    seen_ids.unsubscribed("BTC/USD", 12)
    seen_ids.admit(trades(3), STREAM, 20)
    seen_ids.happened("ring full", 21)
    seen_ids.admit(trades(5), STREAM, 30)
    seen_ids.unsubscribed("ETH/USD", 31)
    seen_ids.admit(trades(7), STREAM, 40)
    causes = [hole.cause for hole in seen_ids.symbols["BTC/USD"].holes]
    assert causes == [UNSUBSCRIBED, "ring full", EXCHANGE]


@pytest.mark.parametrize(("at", "cause"), [(9, EXCHANGE), (10, EXCHANGE), (11, "ring full")])
def test_what_happened_up_to_the_last_trade_is_no_cause(at: int, cause: str) -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(1), STREAM, 10)
    seen_ids.happened("ring full", at)
    seen_ids.admit(trades(3), STREAM, 20)
    assert [hole.cause for hole in seen_ids.symbols["BTC/USD"].holes] == [cause]


@pytest.mark.parametrize(("at", "cause"), [(10, EXCHANGE), (11, UNSUBSCRIBED)])
def test_an_end_of_the_subscription_up_to_the_last_trade_is_no_cause(at: int, cause: str) -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(1), STREAM, 10)
    seen_ids.unsubscribed("BTC/USD", at)
    seen_ids.admit(trades(3), STREAM, 20)
    assert [hole.cause for hole in seen_ids.symbols["BTC/USD"].holes] == [cause]


def test_a_frame_has_the_cause_of_its_first_hole() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(1), STREAM, 10)
    seen_ids.happened("ring full", 11)
    seen_ids.admit((*trades(3), *trades(1, symbol="ETH/USD")), STREAM, 20)
    assert seen_ids.cause == "ring full"
    seen_ids.admit((*trades(4), *trades(3, symbol="ETH/USD")), STREAM, 30)
    assert seen_ids.cause == EXCHANGE
    seen_ids.admit((*trades(5), *trades(4, symbol="ETH/USD")), STREAM, 40)
    assert seen_ids.cause == ""


def test_a_delivery_that_failed_is_counted_and_told() -> None:
    seen_ids = SeenIds()
    seen_ids.admit(trades(1, 2, 3))
    seen_ids.miss(trades(2)[0], "dead", 5)
    assert seen_ids.touched == {"BTC/USD"}
    assert seen_ids.take_counts() == Counts(found=1, found_trades=1, backfilled=0, late=0)
    (hole,) = seen_ids.symbols["BTC/USD"].holes
    assert (hole.first_id, hole.last_id, hole.cause, hole.opened_us) == (2, 2, "dead", 5)
    assert admitted(seen_ids, 2) == [2]
