"""Trades seen before are dropped, trades that come late are not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono import seen
from feedmono.seen import SeenIds
from feedmono.trade import BUY, Trade


def trades(*ids: int, symbol: str = "BTC/USD") -> tuple[Trade, ...]:
    return tuple(
        Trade(symbol, trade_id, "1.0", "1.0", BUY, 1_700_000_000_000_000) for trade_id in ids
    )


def ids(*admitted: Trade) -> list[int]:
    return [trade.trade_id for trade in admitted]


def admitted(seen_ids: SeenIds, *numbers: int, symbol: str = "BTC/USD") -> list[int]:
    return ids(*seen_ids.admit(trades(*numbers, symbol=symbol)))


class Model:
    """The same with plain sets."""

    def __init__(self) -> None:
        self.known: dict[str, set[int]] = {}
        self.first: dict[str, int] = {}

    def admit(self, frame: tuple[Trade, ...]) -> list[Trade]:
        new = []
        for trade in frame:
            low = min(t.trade_id for t in frame if t.symbol == trade.symbol)
            first = self.first.setdefault(trade.symbol, low)
            known = self.known.setdefault(trade.symbol, set())
            if trade.trade_id >= first and trade.trade_id not in known:
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
@given(FRAMES)
def test_the_ranges_admit_what_plain_sets_would(frames: list[tuple[Trade, ...]]) -> None:
    seen_ids, model = SeenIds(), Model()
    dropped = 0
    for frame in frames:
        expected = model.admit(frame)
        assert list(seen_ids.admit(frame)) == expected
        dropped += len(frame) - len(expected)
        assert seen_ids.dropped == dropped
        for symbol, known in model.known.items():
            assert seen_ids.last(symbol) == max(known)


@settings(derandomize=True, max_examples=150)
@given(frames=FRAMES, limit=st.integers(2, 4))
def test_forgotten_holes_are_the_only_loss(frames: list[tuple[Trade, ...]], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "MAX_RANGES", limit)
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


def test_what_lies_below_the_first_frame_counts_as_seen_before() -> None:
    seen_ids = SeenIds()
    assert admitted(seen_ids, 12, 10, 11) == [12, 10, 11]
    assert admitted(seen_ids, 9, 3) == []
    assert seen_ids.dropped == 2


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


def test_with_too_many_holes_the_oldest_is_forgotten() -> None:
    seen_ids = SeenIds()
    every_second = range(0, 2 * seen.MAX_RANGES, 2)
    for number in every_second:
        assert admitted(seen_ids, number) == [number]
    assert admitted(seen_ids, 1) == [1]  # The limit is reached, not passed: the hole is open.
    assert admitted(seen_ids, 2 * seen.MAX_RANGES, 2 * seen.MAX_RANGES + 2) != []
    assert admitted(seen_ids, 3) == []
    assert admitted(seen_ids, 5) == [5]


def test_a_hole_that_was_filled_does_not_count_as_one() -> None:
    seen_ids = SeenIds()
    for start in range(0, 100 * seen.MAX_RANGES, 100):
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
    numbers = list(range(4 * seen.MAX_RANGES, 0, -2))
    assert admitted(SeenIds(), *numbers) == numbers
