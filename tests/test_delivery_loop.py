"""The serializer's loop: what it hands over, what it acknowledges, how far it runs ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
from delivery_rig import Rig, frame, rig

from feedmono import messages, ring, workers
from feedmono.counters import Field, Histogram
from feedmono.delivery.loop import Delivery
from feedmono.ring_layout import BINARY, EVENT, FRAME, HEADER_BYTES, PAGE, Record, record_bytes

__all__ = ["rig"]


def test_the_cursor_moves_only_behind_acknowledgements(rig: Rig) -> None:
    rig.append(*(frame(i) for i in range(1, 6)))
    rig.step()
    rig.step()
    assert rig.ids == ["1", "2", "3", "4", "5"]
    assert rig.reader.acknowledged == 0
    rig.sink.acknowledge(3)
    rig.step()
    assert rig.reader.acknowledged == rig.sink.taken[2].end
    assert rig.counters[Field.DELIVERED_TRADES] == 3
    assert not rig.loop.idle
    rig.sink.acknowledge(5)
    rig.step()
    assert rig.loop.idle
    assert rig.reader.used_bytes == 0


def test_a_successor_begins_at_the_oldest_unacknowledged_record(rig: Rig) -> None:
    rig.append(*(frame(i) for i in range(1, 6)))
    rig.step()
    rig.sink.acknowledge(3)
    rig.step()
    rig.sink.taken.clear()
    rig.sink.end = None
    rig.restart()
    rig.step()
    assert rig.ids == ["4", "5"]


def test_it_reads_at_most_window_records_past_the_oldest_unacknowledged_one(rig: Rig) -> None:
    rig.append(*(frame(i) for i in range(1, 301)))
    for _ in range(10):
        rig.step()
    assert len(rig.ids) == 100
    assert rig.sink.flushes > 0, "a full window asks for what is under way to be stored"
    rig.sink.acknowledge(1)
    for _ in range(10):
        rig.step()
    assert len(rig.ids) == 101


def test_a_sink_that_takes_less_gets_the_rest_later_in_order(rig: Rig) -> None:
    rig.append(*(frame(i) for i in range(1, 51)))
    for room in (7, 7, 20, 50):
        rig.sink.room = room
        rig.step()
        assert rig.ids == [str(i) for i in range(1, room + 1)]


def test_a_trade_seen_before_is_dropped_and_its_frame_with_it(rig: Rig) -> None:
    rig.append(frame(7), frame(8), frame(7), frame(10), frame(9))
    rig.step()
    assert rig.ids == ["7", "8", "10", "9"], "a late trade fills its hole"
    assert rig.sink.taken[2].symbol is None
    assert rig.counters[Field.DUPLICATES] == 1


def test_what_carries_no_trade_is_acknowledged_with_the_rest(rig: Rig) -> None:
    rig.append(b'{"event":"lost"}', kind=EVENT)
    rig.append(frame(1))
    rig.append(b"\x00binary", flags=BINARY)
    rig.append(b"garbage")
    rig.step()
    event, trade, binary, garbage = rig.sink.taken
    assert (event.symbol, event.trades, event.dead) == (None, (), None)
    assert (trade.symbol, len(trade.trades)) == ("BTCUSDT", 1)
    assert binary.dead is not None
    assert binary.dead.stage == "decode"
    assert garbage.dead is not None
    assert garbage.frame.payload == b"garbage"
    assert rig.counters[Field.DEAD_LETTERS] == 2


def test_a_batch_gives_what_its_records_give_one_by_one(rig: Rig, tmp_path: Path) -> None:
    event = messages.event(messages.UNSUBSCRIBED, connection=0, symbol="ETHUSDT")
    payloads = [
        (frame(1), FRAME, 0),
        (frame(2), FRAME, 0),
        (frame(2), FRAME, 0),
        (frame(7, price="1e5"), FRAME, 0),
        (frame(5), FRAME, 0),
        (frame(8, price="no number"), FRAME, 0),
        (frame(1, symbol="ETHUSDT"), FRAME, 0),
        (b"garbage", FRAME, 0),
        (frame(9), FRAME, BINARY),
        (event, EVENT, 0),
        (frame(2, symbol="ETHUSDT"), FRAME, 0),
        (frame(9), FRAME, 0),
        (frame(10), FRAME, 0),
        (b"no page", PAGE, 0),
    ]
    records = [
        Record(100 * i, i, 10**18 + i, 0, kind, flags, payload)
        for i, (payload, kind, flags) in enumerate(payloads, 1)
    ]
    now_ns = 2 * 10**18
    (tmp_path / "other").mkdir()
    other = Rig(tmp_path / "other")
    singly = [other.normalizer.take(r, 1000 + r.end, now_ns) for r in records]
    together = rig.normalizer.take_all(records, 1000, now_ns)
    assert [t.entry for t in together] == [t.entry for t in singly]
    assert [t.trades for t in together] == [t.trades for t in singly]
    assert [t.cause for t in together] == [t.cause for t in singly]
    assert [t.entry.end for t in together] == [1000 + r.end for r in records]
    assert together[5].entry.dead is not None
    for field in (Field.TRADES, Field.DUPLICATES, Field.DEAD_LETTERS, Field.LAST_TRADE_NS):
        assert rig.counters[field] == other.counters[field], field
    for kind in Histogram:
        assert rig.counters.buckets(kind) == other.counters.buckets(kind)
        assert rig.counters.sum_s(kind) == pytest.approx(other.counters.sum_s(kind))
    other.writer.close()


def test_a_trade_that_can_not_be_normalized_is_a_dead_letter_and_the_others_go_on(
    rig: Rig,
) -> None:
    rig.append(frame(1), frame(2, symbol="NEWUSDT"), frame(3))
    rig.step()
    assert rig.ids == ["1", "3"]
    dead = rig.sink.taken[1].dead
    assert dead is not None
    assert dead.stage == "normalize"
    assert "NEWUSDT" in dead.reason
    assert "canonical_symbols" in dead.reason


def test_metadata_that_comes_later_is_used_from_then_on(rig: Rig) -> None:
    rig.append(frame(1, symbol="NEWUSDT"))
    rig.step()
    workers.publish(rig.metadata, {"symbols": {"NEWUSDT": "NEW/USDT", "BTCUSDT": "ignored"}})
    rig.append(frame(2, symbol="NEWUSDT"))
    rig.step()
    assert rig.ids == ["2"]
    assert rig.canonical.names["BTCUSDT"] == "BTC/USDT", "the operator's name stays"


def test_a_damaged_record_becomes_a_dead_letter_and_the_others_are_delivered(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    with rig.path.open("r+b") as file:
        file.seek(HEADER_BYTES + record_bytes(len(frame(1))) + 40)
        file.write(b"\xff\xff")
    for _ in range(6):
        rig.step()
    assert rig.ids == ["1", "3"]
    (letter,) = [e for e in rig.sink.taken if e.dead]
    assert letter.dead is not None
    assert letter.dead.stage == "ring"
    size = record_bytes(len(frame(1)))
    assert [entry.end for entry in rig.sink.taken] == [size, 2 * size, 3 * size]
    rig.sink.acknowledge(len(rig.sink.taken))
    rig.step()
    assert rig.reader.used_bytes == 0
    assert rig.counters[Field.DAMAGED_RECORDS] == 1


def test_positions_of_a_second_ring_go_on_behind_those_of_the_first(
    rig: Rig, tmp_path: Path
) -> None:
    rig.append(frame(1))
    rig.step()
    rig.sink.acknowledge(1)
    rig.step()
    base = rig.loop.base
    assert base == rig.sink.taken[0].end
    second = tmp_path / "second.ring"
    ring.create(second, 1 << 20)
    ring.RingWriter(second).append([frame(2)], FRAME, 0, 1)
    reader = ring.RingReader(second)
    follower = Delivery(reader, rig.parts, rig.counters, 100, base)
    follower.step(hurry=True)
    follower.step(hurry=True)
    assert reader.acknowledged == 0, "what the first ring's last entry said is no news"
    rig.sink.acknowledge(2)
    follower.step(hurry=True)
    assert reader.used_bytes == 0
