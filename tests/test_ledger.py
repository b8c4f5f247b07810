"""The ledger: what was committed is there again, with a bounded history of fills and epochs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ledger_rig import (
    NOW_US,
    RING,
    SECOND_US,
    START_US,
    commit,
    content,
    deliver,
    kept,
    ledger_path,
    opened,
    trade,
)

from feedmono.delivery import ledger as ledger_module
from feedmono.delivery import ledger_file
from feedmono.delivery.holes import Edge, State, mark_of
from feedmono.delivery.ids import Epoch
from feedmono.delivery.ledger_file import Content, read, read_epochs, read_fills
from feedmono.trade import BACKFILL, MAX_TRADE_ID, STREAM

__all__ = ["ledger_path"]


# --- what is there again


def test_a_new_ledger_knows_nothing(path: Path) -> None:
    assert read(path) is None
    ledger = opened(path)
    assert (ledger.symbols, ledger.sequence, ledger.mark) == ({}, -1, None)
    assert (ledger.position(RING), ledger.dirty) == (None, False)
    assert content(path) == Content({}, {}, -1, None, 0)
    ledger.close()
    assert opened(path).symbols == {}


def test_what_was_committed_is_there_again(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 6, 10)
    deliver(ledger, 70, symbol="ETH/USD")
    before_us = time.time_ns() // 1000
    assert commit(ledger, 3) == {"BTC/USD", "ETH/USD"}
    committed = kept(ledger.symbols)
    ledger.close()
    again = opened(path)
    assert kept(again.symbols) == committed
    assert (again.position(RING), again.sequence, again.mark) == (30, 3, {"records": 3})
    (hole,) = again.symbols["BTC/USD"].holes
    assert (hole.first_id, hole.last_id, hole.state) == (7, 9, State.OPEN)
    assert hole.before == Edge(6, START_US + 6, mark_of(trade(6)))
    found = content(path)
    assert kept(found.symbols) == committed
    assert (found.rings, found.sequence, found.mark) == ({RING: 30}, 3, {"records": 3})
    assert before_us <= found.committed_us <= time.time_ns() // 1000


def test_what_was_not_committed_is_not_there(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 1)
    deliver(ledger, 6, 9)
    deliver(ledger, 5, symbol="ETH/USD")
    assert ledger.dirty
    ledger.close()
    again = opened(path)
    assert list(again.symbols) == ["BTC/USD"]
    assert again.symbols["BTC/USD"].last_id == 5
    assert again.sequence == 1


def test_a_commit_without_changes_moves_the_position(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 1)
    assert not ledger.dirty
    assert commit(ledger, 2) == set()
    assert (ledger.position(RING), content(path).rings) == (20, {RING: 20})


def test_a_frame_is_taken_in_the_order_of_its_ids(path: Path) -> None:
    ledger = opened(path)
    frame = [trade(number) for number in (8, 6, 7, 5)]
    ledger.deliver(frame, STREAM, "gap", NOW_US, 10, 1)
    ids = ledger.symbols["BTC/USD"]
    assert (ids.first_id, ids.last_id, ids.holes, ids.found) == (5, 8, [], 0)


def test_the_sequence_is_never_lowered(path: Path) -> None:
    """The rest of a damaged ring is read after the ring that took its place was made."""
    ledger = opened(path)
    ledger.commit(RING, 5, 100, {})
    ledger.commit(-1, 7, 50, {})
    assert (ledger.sequence, content(path).sequence) == (100, 100)
    assert content(path).rings == {RING: 5}, "without a ring, no position"


def test_positions_are_kept_per_ring_until_one_is_kept(path: Path) -> None:
    ledger = opened(path)
    ledger.commit(RING, 5, 100, {})
    ledger.commit(RING + 1, 7, 200, {})
    ledger.commit(RING, 6, 101, {})
    assert content(path).rings == {RING: 6, RING + 1: 7}
    ledger.keep_ring(RING + 1)
    assert (ledger.position(RING), ledger.position(RING + 1)) == (None, 7)
    ledger.commit(RING + 1, 8, 201, {})
    assert content(path).rings == {RING + 1: 8}


def test_a_copy_goes_on_by_itself(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 9)
    copy = ledger.copy()
    assert kept(copy) == kept(ledger.symbols)
    before = kept(ledger.symbols)
    copy["BTC/USD"].add(trade(7), STREAM, "gap", NOW_US, 10, 7)
    copy["BTC/USD"].add(trade(10), STREAM, "gap", NOW_US, 10, 7)
    assert kept(ledger.symbols) == before


def test_the_largest_numbers_fit(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 0, MAX_TRADE_ID - 5, MAX_TRADE_ID)
    ledger.commit(MAX_TRADE_ID, MAX_TRADE_ID, MAX_TRADE_ID, {"end": MAX_TRADE_ID})
    assert ledger.symbols["BTC/USD"].last_id == MAX_TRADE_ID
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert content(path).rings == {MAX_TRADE_ID: MAX_TRADE_ID}


def test_a_symbol_and_a_folder_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1?" / "a b%20'.ledger"
    ledger = opened(path)
    for symbol in ("Ж/USD", "A'B", 'A"B', "%?_", "😀"):
        deliver(ledger, 5, 7, symbol=symbol)
    commit(ledger, 1)
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert read_fills(path) == []


def test_garbage_with_an_old_id_and_a_newer_time_makes_no_hole(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, *range(1000, 1100))
    ids = ledger.symbols["BTC/USD"]
    for number in range(1100, 1120):
        garbage = number - 60 * (number % 2) - 60 * (number % 3)
        late = trade(garbage - 50, start_us=START_US + 10 * SECOND_US)
        ledger.deliver([late], STREAM, "gap", NOW_US, 10, number)
        deliver(ledger, number)
    assert (ids.epoch, ids.first_id, ids.last_id, ids.holes) == (0, 1000, 1119, [])
    assert ids.islands


def test_an_epoch_that_was_not_confirmed_before_a_crash_begins_as_it_did(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, *range(1000, 1100))
    late = [trade(number, start_us=START_US + 10 * SECOND_US) for number in range(1050, 1054)]
    ledger.deliver(late[:1], STREAM, "gap", NOW_US, 10, 1)
    commit(ledger, 1)
    ledger.close()
    ledger = opened(path)
    for each in late[1:]:
        ledger.deliver([each], STREAM, "gap", NOW_US, 10, 2)
    commit(ledger, 2)
    ids = content(path).symbols["BTC/USD"]
    assert (ids.epoch, ids.first_id, ids.last_id, ids.holes) == (1, 1050, 1053, [])
    assert read_epochs(path, "BTC/USD") == [Epoch(0, START_US + 1000, 1000, 1099, 0)]


# --- history


def test_fills_are_remembered_with_neighbours_as_one(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 1, 100, 200)
    deliver(ledger, 1, 5, symbol="ETH/USD")
    commit(ledger, 0)
    deliver(ledger, *range(30, 60), *range(60, 30, -1), origin=BACKFILL)
    deliver(ledger, 70, 71, 150)
    deliver(ledger, 2, 3, 4, symbol="ETH/USD")
    commit(ledger, 1)
    deliver(ledger, 72)
    commit(ledger, 2)
    rows = [(f.symbol, f.first_id, f.last_id, f.origin) for f in read_fills(path)]
    assert rows[0] == ("BTC/USD", 72, 72, "STREAM"), "the newest first"
    assert sorted(rows[1:]) == [
        ("BTC/USD", 30, 60, "BACKFILL"),
        ("BTC/USD", 70, 71, "STREAM"),
        ("BTC/USD", 150, 150, "STREAM"),
        ("ETH/USD", 2, 4, "STREAM"),
    ]
    assert [f.first_id for f in read_fills(path, "ETH/USD")] == [2]
    assert [f.first_id for f in read_fills(path, count=1)] == [72]
    assert read_fills(path, "XRP/USD") == []
    fill = read_fills(path)[0]
    assert (fill.cause, fill.opened_us) == ("gap", NOW_US)
    assert abs(fill.filled_us - time.time_ns() // 1000) < 60 * SECOND_US


def test_the_history_of_fills_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "MAX_FILLS", 30)
    monkeypatch.setattr(ledger_module, "_TRIM_EVERY", 10)
    ledger = opened(path)
    deliver(ledger, *range(0, 1000, 2))
    for number in range(100):
        deliver(ledger, 4 * number + 1)
        commit(ledger, number)
        assert len(read_fills(path, count=1000)) <= 40
    newest = [f.first_id for f in read_fills(path, count=30)]
    assert newest == [4 * number + 1 for number in range(99, 69, -1)]


def test_the_history_is_bounded_over_many_short_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "MAX_FILLS", 30)
    ledger = opened(path)
    deliver(ledger, *range(0, 1000, 2))
    commit(ledger, 0)
    ledger.close()
    for number in range(100):
        ledger = opened(path)
        deliver(ledger, 4 * number + 1)
        commit(ledger, number)
        ledger.close()
    assert len(read_fills(path, count=1000)) <= 31


def test_epochs_are_remembered_and_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "MAX_EPOCHS", 5)
    monkeypatch.setattr(ledger_module, "_TRIM_EVERY", 1)
    ledger = opened(path)
    deliver(ledger, 1, symbol="ETH/USD")
    for number in range(10):
        start_us = START_US + 10 * SECOND_US * number
        for each in (1, 5):
            ledger.deliver([trade(each, start_us=start_us)], STREAM, "gap", NOW_US, 10, each)
        commit(ledger, number)
    assert read_epochs(path, "BTC/USD") == [
        Epoch(number, START_US + 10 * SECOND_US * number + 1, 1, 5, 3) for number in range(4, 9)
    ]
    assert read_epochs(path, "ETH/USD") == []
    ids = content(path).symbols["BTC/USD"]
    assert (ids.epoch, ids.first_id, ids.last_id, ids.found) == (9, 1, 5, 10)
