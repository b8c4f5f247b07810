"""Batches: what is usual, taken out of the ring in C as the way record by record would take it; and
what ends one."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_rig import (
    NAMES,
    NOW_NS,
    ONE_BY_ONE,
    RECEIVED_NS,
    Row,
    Taker,
    append,
    frame,
    ids_of,
    next_to,
    rig,
    rows,
)
from delivery_rig import T0_US, Rig
from frame_twins import NEEDS_NATIVE

from feedmono import messages
from feedmono.avro import TradeEncoder
from feedmono.delivery.fast_path import FastPath, Taken, batch_path
from feedmono.exchanges import load
from feedmono.ring import RingReader
from feedmono.ring_layout import BINARY, COMMITTED_WORD, EVENT, FRAME, PAGE
from feedmono.sinks.base import Entry, Frame
from feedmono.trade import EncodedTrade, Trade

__all__ = ["rig"]

pytestmark = NEEDS_NATIVE


def test_its_entries_are_those_of_the_way_record_by_record(rig: Rig) -> None:
    known = next_to(*ONE_BY_ONE)
    append(rig, *ONE_BY_ONE)
    batch = Taker(rig, known).taken()
    records = RingReader(rig.path).read(10, 1 << 20)
    taken: list[Taken] = []
    beside = next_to(*ONE_BY_ONE)
    path = FastPath(load("kraken").decode, TradeEncoder("kraken").encode)
    path.take(records, 0, 0, NAMES, beside, NOW_NS // 1_000_000, taken, [])
    assert list(batch) == [item.entry for item in taken]
    assert batch.items() == taken
    assert (batch.end, batch.sequence) == (records[-1].end, records[-1].sequence)
    assert (batch.first_received_ns, batch.last_received_ns) == (RECEIVED_NS, RECEIVED_NS)
    assert batch.trades == 3
    assert batch.least_latency_us == 7000
    assert rig.reader.position == batch.end
    assert {s: (i.last_id, i.last, i.sequence, i.newest_us) for s, i in known.items()} == {
        s: (i.last_id, i.last, i.sequence, i.newest_us) for s, i in beside.items()
    }
    types = [type(batch[0]), type(batch[0].frame), type(batch[0].trades[0])]
    types += [type(batch.items()[0]), type(known["BTC/USD"].last)]
    assert types == [Entry, Frame, EncodedTrade, Taken, Trade]


def test_a_frame_may_hold_several_trades(rig: Rig) -> None:
    frames = [frame(Row(11), Row(12), Row(5, "ETH/USD"), Row(13)), frame(Row(14))]
    known = next_to(*frames)
    append(rig, *frames)
    batch = Taker(rig, known).taken()
    assert (len(batch), batch.trades) == (2, 5)
    assert batch[0].symbol == "BTC/USD"
    assert [trade.symbol for trade in batch[0].trades] == [r.symbol for r in rows(frames[0])]
    assert ids_of(batch) == [11, 12, 5, 13, 14]
    assert (known["BTC/USD"].last_id, known["ETH/USD"].last_id) == (14, 5)


def test_a_frame_of_which_one_trade_is_unusual_changes_nothing(rig: Rig) -> None:
    known = next_to(frame(Row(11)), frame(Row(5, "ETH/USD")))
    append(rig, frame(Row(11)), frame(Row(12), Row(5, "ETH/USD"), Row(14), Row(6, "ETH/USD")))
    taker = Taker(rig, known)
    assert len(taker.taken()) == 1
    assert (known["BTC/USD"].last_id, known["ETH/USD"].last_id) == (11, 4)
    assert taker.take() is None
    assert len(rig.reader.read(10, 1 << 20)) == 1, "it is left in the ring"


UNUSUAL: dict[str, tuple[bytes, int, int]] = {
    "a repeat": (frame(Row(11)), FRAME, 0),
    "a jump": (frame(Row(13)), FRAME, 0),
    "of an unknown symbol": (frame(Row(12, "A/B")), FRAME, 0),
    "of a symbol without a name": (frame(Row(12, "NO/NAME")), FRAME, 0),
    "no trade": (frame(), FRAME, 0),
    "a snapshot": (frame(Row(12), kind="snapshot"), FRAME, 0),
    "of an older epoch": (frame(Row(12, time="2023-08-08T23:54:15.342000Z")), FRAME, 0),
    "a price with an exponent": (frame(Row(12, price="1e5")), FRAME, 0),
    "a price that is none": (frame(Row(12, price="-1")), FRAME, 0),
    "a frame that is cut": (frame(Row(12))[:-1], FRAME, 0),
    "an empty frame": (b"", FRAME, 0),
    "garbage": (b"garbage", FRAME, 0),
    "a binary message": (frame(Row(12)), FRAME, BINARY),
    "an event": (messages.event(messages.READER), EVENT, 0),
    "a page": (frame(Row(12)), PAGE, 0),
    "257 trades": (frame(*map(Row, range(12, 269))), FRAME, 0),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_ends_a_batch_and_stays_in_the_ring(rig: Rig, name: str) -> None:
    known = next_to(frame(Row(11)), frame(Row(12, "NO/NAME")))
    unusual, kind, flags = UNUSUAL[name]
    append(rig, frame(Row(11)))
    append(rig, unusual, kind=kind, flags=flags)
    append(rig, frame(Row(12)))
    taker = Taker(rig, known)
    assert ids_of(taker.taken()) == [11]
    assert taker.take() is None
    assert known["BTC/USD"].last_id == 11
    assert rig.reader.read(1, 1 << 20)[0].payload == unusual
    assert ids_of(taker.taken()) == [12]


def test_a_symbol_with_islands_or_strays_is_looked_at_closely(rig: Rig) -> None:
    known = next_to(frame(Row(11)))
    append(rig, frame(Row(11)), frame(Row(12)), frame(Row(13)))
    taker = Taker(rig, known)
    known["BTC/USD"].islands[99] = None
    assert taker.take() is None
    known["BTC/USD"].islands.clear()
    known["BTC/USD"]._strays[13] = T0_US
    assert ids_of(taker.taken()) == [11, 12]
    assert taker.take() is None


def test_an_older_time_is_no_newest_one(rig: Rig) -> None:
    frames = [frame(Row(11)), frame(Row(12, time="2024-08-08T23:54:15.342001Z")), frame(Row(13))]
    known = next_to(*frames)
    append(rig, *frames)
    Taker(rig, known).taken()
    assert known["BTC/USD"].newest_us == T0_US + 1


def test_damage_ends_a_batch(rig: Rig) -> None:
    append(rig, *ONE_BY_ONE)
    second = RingReader(rig.path).read(1, 1)[0].end
    with rig.path.open("r+b") as file:
        file.seek(4096 + second + 40)
        file.write(b"\xff\xff")
    taker = Taker(rig, next_to(*ONE_BY_ONE))
    assert ids_of(taker.taken()) == [11]
    assert taker.take() is None


def test_what_a_cursor_was_moved_back_over_is_read_record_by_record(rig: Rig) -> None:
    """An append under way may still write there: `RingReader.read` watches for that."""
    append(rig, *ONE_BY_ONE)
    taker = Taker(rig, next_to(*ONE_BY_ONE))
    taker.taken()
    rig.reader.acknowledge(rig.reader.position)
    assert rig.reader.seek(0)
    append(rig, frame(Row(13)))
    taker.known = next_to(*ONE_BY_ONE)
    assert taker.take() is None
    assert len(rig.reader.read(10, 1 << 20)) == 3
    taker.known = next_to(frame(Row(13)))
    assert ids_of(taker.taken()) == [13]


def test_a_cursor_that_can_not_be_believed_gives_none(rig: Rig) -> None:
    append(rig, *ONE_BY_ONE)
    taker = Taker(rig, next_to(*ONE_BY_ONE))
    assert not rig.reader.drained
    rig.reader._words[COMMITTED_WORD] ^= 1 << 50
    assert taker.take() is None
    rig.reader._words[COMMITTED_WORD] ^= 1 << 50
    assert len(taker.taken()) == 3
    assert rig.reader.drained


def test_while_damage_is_searched_through_there_is_none(rig: Rig) -> None:
    append(rig, *ONE_BY_ONE)
    rig.reader._searched = 8
    taker = Taker(rig, next_to(*ONE_BY_ONE))
    assert taker.take() is None
    rig.reader._searched = None
    assert len(taker.taken()) == 3


def test_room_and_bytes_bound_a_batch_but_never_its_first_record(rig: Rig) -> None:
    frames = [frame(Row(number)) for number in range(1, 101)]
    append(rig, *frames)
    taker = Taker(rig, next_to(*frames))
    assert [len(taker.take(7) or ()) for _ in range(3)] == [7, 7, 7]
    assert len(taker.take(100, 1) or ()) == 1
    assert len(taker.take(100, 500) or ()) == 3
    assert taker.take(0) is None
    assert ids_of(taker.taken()) == list(range(26, 101))
    assert taker.take() is None


def test_a_ring_of_many_laps_and_frames_of_any_size_come_whole(rig: Rig) -> None:
    taken: list[int] = []
    taker = Taker(rig, next_to(frame(Row(1))))
    for number in range(1, 400):
        payload = frame(Row(number), more=f'"x":"{"y" * (number * 97 % 20_000)}",')
        append(rig, payload)
        batch = taker.taken()
        assert batch[0].frame.payload == payload
        taken += ids_of(batch)
        rig.reader.acknowledge(rig.reader.position)
    assert taken == list(range(1, 400))
    assert rig.reader.position > 2 * rig.reader.capacity_bytes


def test_more_symbols_than_one_batch_takes_go_into_the_next(rig: Rig, tmp_path: Path) -> None:
    names = {f"S{number}/USD": f"S{number}/USD" for number in range(1000)}
    frames = [frame(Row(5, name)) for name in names]
    for payload in frames:
        append(rig, payload)
    known = next_to(*frames)
    path = batch_path(load("kraken"), TradeEncoder("kraken"), rig.counters)
    assert path is not None
    found: list[str | None] = []
    while batch := rig.reader.take(path.take, 1000, 1 << 20, 0, names, known, 1):
        found += [entry.symbol for entry in batch]
    assert found == list(names)
    assert {ids.last_id for ids in known.values()} == {5}
