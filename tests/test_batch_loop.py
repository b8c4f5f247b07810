"""Batches in the serializer's loop: stored in parts, entered into the ledger, counted."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from batch_rig import NOW_NS, Row, Taker, append, frame, ids_of, next_to, rig, rows
from delivery_rig import Rig
from frame_twins import NEEDS_NATIVE

from feedmono.counters import BOUNDS_US, Field, Histogram
from feedmono.delivery import loop

__all__ = ["rig"]

pytestmark = NEEDS_NATIVE


def test_what_is_stored_goes_into_the_ledger_with_its_latency(rig: Rig) -> None:
    frames = [frame(Row(11), Row(12)), frame(Row(7, "ETH/USD"))]
    append(rig, *frames)
    batch = Taker(rig, next_to(*frames)).taken()
    known, changed = next_to(*frames), set[str]()
    before = rig.counters.buckets(Histogram.DELIVERY)
    assert batch.deliver(known, changed, NOW_NS) == (2, 3)
    assert changed == {"BTC/USD", "ETH/USD"}
    assert known["BTC/USD"].last == rows(frames[0])[1]
    assert known["BTC/USD"].sequence == batch[0].frame.sequence
    after = rig.counters.buckets(Histogram.DELIVERY)
    counted = [now - then for then, now in zip(before, after, strict=True)]
    assert {BOUNDS_US[n]: count for n, count in enumerate(counted) if count} == {15_000: 3}
    assert rig.counters.sum_s(Histogram.DELIVERY) == 3 * 12_345 / 1e6


def test_it_stops_before_what_is_unusual_for_the_ledger(rig: Rig) -> None:
    frames = [frame(Row(11)), frame(Row(5, "ETH/USD"), Row(12)), frame(Row(6, "ETH/USD"))]
    append(rig, *frames)
    batch = Taker(rig, next_to(*frames)).taken()
    known, changed = next_to(*frames), set[str]()
    known["BTC/USD"].holes.append(object())  # type: ignore[arg-type]  # is of no interest here
    known["ETH/USD"].last_id = 3
    assert batch.deliver(known, changed, NOW_NS) == (1, 1)
    assert changed == {"BTC/USD"}
    assert (known["BTC/USD"].last_id, known["ETH/USD"].last_id) == (11, 3)
    known["ETH/USD"].last_id = 4
    rest = batch.split(1)
    assert rest.deliver(known, changed, NOW_NS) == (2, 3)
    del known["ETH/USD"]
    assert rest.deliver(known, changed, NOW_NS) == (0, 0)


def with_a_batch(rig: Rig) -> None:
    """A trade alone and a batch of eight are ready for the sink."""
    append(rig, frame(Row(1)))
    rig.step()
    append(rig, *(frame(Row(number)) for number in range(2, 10)))


def test_a_batch_may_be_taken_and_stored_in_parts(rig: Rig) -> None:
    with_a_batch(rig)
    rig.sink.room = 5
    rig.step()
    assert ids_of(rig.sink.taken) == [1, 2, 3, 4, 5]
    rig.step()
    assert len(rig.sink.taken) == 5
    rig.sink.room = 100
    rig.step()
    assert ids_of(rig.sink.taken) == list(range(1, 10))
    for count in (1, 3, 3, 7, 9):
        rig.sink.acknowledge(count)
        rig.step()
        assert rig.counters[Field.DELIVERED_TRADES] == count
        assert rig.reader.acknowledged == rig.sink.taken[count - 1].end
    assert rig.loop.idle


def test_a_single_trade_and_a_batch_behind_it_are_stored_at_once(rig: Rig) -> None:
    with_a_batch(rig)
    rig.step()
    rig.sink.acknowledge(9)
    rig.step()
    assert rig.counters[Field.DELIVERED_TRADES] == 9
    assert rig.loop.idle


def test_a_trade_of_a_batch_that_the_sink_refused_is_missing_again(rig: Rig) -> None:
    with_a_batch(rig)
    rig.step()
    rig.sink.refused.append((rig.sink.taken[4].end, 0))
    rig.sink.acknowledge(9)
    rig.step()
    assert rig.loop.idle
    assert rig.ledger is not None
    for known in (rig.seen.symbols, rig.ledger.symbols):
        holes = [(hole.first_id, hole.last_id) for hole in known["BTC/USD"].holes]
        assert (holes, known["BTC/USD"].last_id) == ([(5, 5)], 9)


def test_how_long_a_batch_was_in_the_ring_counts_for_each_of_its_records(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(rig, frame(Row(1)))
    rig.step()
    before_s = rig.counters.sum_s(Histogram.RING)
    clocks = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: NOW_NS)
    monkeypatch.setattr(loop, "time", clocks)
    append(rig, *(frame(Row(number)) for number in range(2, 5)))
    rig.step()
    added_s = rig.counters.sum_s(Histogram.RING) - before_s
    assert added_s == pytest.approx(3 * 0.012345678, abs=1e-5)


def test_what_is_often_unusual_is_read_in_growing_pieces(rig: Rig) -> None:
    append(rig, *([frame(Row(1))] * 100))
    rounds = 0
    while rig.reader.used_bytes and rig.loop.step(hurry=True):
        rounds += 1
        rig.sink.acknowledge(len(rig.sink.taken))
    assert len(rig.sink.taken) == 100
    assert rounds < 12
