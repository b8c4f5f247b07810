"""The serializer's loop where it is seldom: pages, refused trades, a ledger that is busy, rings
that are read twice, what the reader tells of its connections."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_delivery_loop
from test_delivery_loop import ManualSink, Rig
from toy import Events, events

from feedmono import messages, ring, workers
from feedmono.counters import (
    NO_OFFSET,
    OFFSET_SPAN_S,
    SINK_ERROR_KINDS,
    Counters,
    Field,
    Histogram,
)
from feedmono.delivery import ids as arithmetic
from feedmono.delivery import ledger_file, loop
from feedmono.delivery.backfill import DEAD
from feedmono.delivery.holes import State
from feedmono.delivery.ids import EPOCH_US, FAR
from feedmono.delivery.loop import Delivery, SinkCounts
from feedmono.delivery.seen import UNSUBSCRIBED
from feedmono.exchanges import load
from feedmono.exchanges.base import Decoded, PageRequest
from feedmono.exchanges.binance import Binance
from feedmono.ring import RingReader, SalvagedReader
from feedmono.ring_layout import EVENT, FRAME, HEADER_BYTES, PAGE, record_bytes
from feedmono.sinks.base import SinkStats
from feedmono.trade import BACKFILL, Trade

__all__ = ["events"]

T0_US = 1_723_161_255_342_000
DAY_US = 86_400_000_000
SYMBOL = "BTCUSDT"


def frame(
    trade_id: int, time_us: int = T0_US, symbol: str = SYMBOL, price: str = "1.50", **more: object
) -> bytes:
    event = {
        "e": "trade", "E": 1, "s": symbol, "t": trade_id, "p": price, "q": "2.0",
        "T": time_us, "m": True, "M": True, **more,
    }  # fmt: skip
    return json.dumps({"stream": "x@trade", "data": event}, separators=(",", ":")).encode()


def row(trade_id: int, price: str = "1.50", time_us: int = T0_US) -> dict[str, object]:
    """The same by REST."""
    return {"id": trade_id, "price": price, "qty": "2.0", "time": time_us, "isBuyerMaker": True}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.writer.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the loop takes for the time, in seconds."""
    now_s = [1000.0]
    clocks = SimpleNamespace(monotonic=lambda: now_s[0], time_ns=time.time_ns)
    monkeypatch.setattr(loop, "time", clocks)
    return now_s


def tell(rig: Rig, kind: str, **fields: object) -> None:
    rig.append(messages.event(kind, **fields), kind=EVENT)


def asked(rig: Rig, seconds: float = 10.0) -> list[PageRequest]:
    """What is asked for after so long."""
    rig.asked.clear()
    rig.step()
    rig.now_s += seconds
    rig.step()
    return rig.asked


def store(rig: Rig) -> None:
    """All that was handed over is stored, and in the ledger."""
    rig.step()
    rig.sink.acknowledge(len(rig.sink.taken))
    rig.step()
    rig.step()
    assert rig.loop.idle


def delivered_holes(rig: Rig) -> list[tuple[int, int, str, State]]:
    """What the ledger has."""
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    holes = content.symbols[SYMBOL].holes
    return [(hole.first_id, hole.last_id, hole.cause, hole.state) for hole in holes]


def seen_causes(rig: Rig) -> list[str]:
    return [hole.cause for hole in rig.seen.symbols[SYMBOL].holes]


# --- What is acknowledged.


def test_what_a_sink_counts_is_told_once_and_by_kind(tmp_path: Path) -> None:
    counters = Counters.create(tmp_path / "counters")
    stats = SinkStats(dead_letters=5)
    stats.failures["disk"] = 7
    counts = SinkCounts(counters, stats)
    counts.publish()
    assert not any(counters[field] for field in (Field.SINK_ERRORS, Field.DEAD_LETTERS))
    stats.failures["broker"] += 2
    stats.failures["disk"] += 1
    stats.dead_letters += 3
    for _ in range(2):
        counts.publish()
        told = {kind: counters[field] for kind, field in SINK_ERROR_KINDS.items()}
        assert told == {"disk": 1, "broker": 2, "message": 0, "coverage": 0, "fatal": 0}
        assert (counters[Field.SINK_ERRORS], counters[Field.DEAD_LETTERS]) == (3, 3)


def test_a_sink_that_tells_when_it_stored_is_believed(rig: Rig) -> None:
    rig.append(*(frame(number) for number in range(1, 5)))
    rig.step()
    received_ns = 10**18
    ends = [entry.end for entry in rig.sink.taken]
    rig.sink.stored += [(ends[0], received_ns + 10**6), (ends[2], received_ns + 5 * 10**6)]
    rig.sink.end = ends[2]
    rig.step()
    assert not rig.sink.stored
    assert rig.counters[Field.DELIVERED_TRADES] == 3
    assert rig.counters.sum_s(Histogram.DELIVERY) == pytest.approx(0.001 + 2 * 0.005)
    assert rig.reader.acknowledged == ends[2]


def test_a_trade_that_the_sink_refused_is_missing_again(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    rig.step()
    rig.sink.refused.append((rig.sink.taken[1].end, 0))
    store(rig)
    assert delivered_holes(rig) == [(2, 2, DEAD, State.OPEN)]
    assert seen_causes(rig) == [DEAD]
    assert rig.sink.refused == []
    assert rig.counters[Field.HOLES] == 1
    assert [wish.first_id for wish in asked(rig, 61.0)] == [1]


def test_an_exchange_that_takes_no_number_for_one_costs_that_trade_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trades in a frame, of which one has a price that is none."""

    def decode(_: Binance, payload: bytes) -> Decoded:
        good = Trade(SYMBOL, 1, "1.50", "2.0", 0, T0_US)
        return Decoded((good, good._replace(trade_id=2, price="none")))

    monkeypatch.setattr(Binance, "decode", decode)
    rig.restart()
    rig.append(b"two trades")
    rig.step()
    (entry,) = rig.sink.taken
    assert len(entry.trades) == 1
    assert entry.dead is not None
    assert (entry.dead.stage, "none" in entry.dead.reason) == ("normalize", True)
    store(rig)
    assert delivered_holes(rig) == [(2, 2, DEAD, State.OPEN)]
    assert rig.counters[Field.DELIVERED_TRADES] == 1


# --- Pages.


def page(rig: Rig, wish: PageRequest, rows: Sequence[object] | bytes) -> None:
    body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    rig.append(messages.page(wish, body), kind=PAGE)


def test_a_page_fills_a_hole_and_is_counted_trade_by_trade(rig: Rig) -> None:
    rig.append(frame(1), frame(5))
    (wish,) = asked(rig)
    page(rig, wish, [row(number) for number in range(1, 6)])
    rig.step()
    entry = rig.sink.taken[-1]
    assert (entry.symbol, entry.frame.origin, len(entry.trades)) == (SYMBOL, BACKFILL, 3)
    assert json.loads(entry.frame.payload)[0]["id"] == 1, "the answer's own bytes"
    store(rig)
    assert delivered_holes(rig) == []
    assert rig.counters[Field.DELIVERED_TRADES] == 5
    assert rig.counters[Field.BACKFILLED] == 3
    assert (rig.counters[Field.HOLES_OPEN], rig.counters[Field.HOLES]) == (0, 1)


def test_what_a_page_lacks_twice_is_absent_in_the_ledger(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.append(frame(1), frame(5))
    for since_s in (0, 100):
        monkeypatch.setattr("feedmono.delivery.normalizer.steady_time", lambda s=since_s: 1e6 + s)
        (wish,) = asked(rig, 1000.0)
        page(rig, wish, [row(number) for number in (1, 2, 4, 5) if number >= wish.first_id])
        store(rig)
    assert delivered_holes(rig) == [(3, 3, "exchange", State.ABSENT)]
    assert rig.counters[Field.ABSENT] == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([row(1, "9.99"), row(2), row(3)], "1"), (b"Bad Gateway", "not a list of trades")],
    ids=["another market's", "no page"],
)
def test_a_page_that_can_not_be_what_was_asked_for_is_refused_and_told_once(
    rig: Rig, events: Events, rows: Sequence[object] | bytes, reason: str
) -> None:
    rig.append(frame(1), frame(5))
    for _ in range(2):
        (wish,) = asked(rig, 1000.0)
        page(rig, wish, rows)
        rig.step()
        dead = rig.sink.taken[-1].dead
        assert dead is not None
        assert (dead.stage, dead.symbol) == ("page", SYMBOL)
        assert reason in dead.reason
    assert rig.counters[Field.PAGES_REFUSED] == 2
    assert len(events.named("refused a page")) == 1
    (wish,) = asked(rig, 1000.0)
    page(rig, wish, [row(number) for number in range(1, 6)])
    store(rig)
    assert delivered_holes(rig) == []


def test_a_page_of_too_old_trades_is_told_to_the_ledger_behind_what_is_under_way(
    rig: Rig,
) -> None:
    rig.append(frame(1), frame(5, T0_US + 1), frame(6, T0_US + 2 * DAY_US))
    rig.step()
    rig.step()
    assert rig.loop._deferred, "the ledger does not know of the hole yet"
    store(rig)
    assert not rig.loop._deferred
    assert delivered_holes(rig) == [(2, 4, "exchange", State.BEYOND)]


def test_what_is_given_up_is_not_in_the_ledger_before_all_that_was_under_way(rig: Rig) -> None:
    rig.append(frame(1), frame(5, T0_US + 1), frame(6, T0_US + 2 * DAY_US))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    assert delivered_holes(rig) == [(2, 4, "exchange", State.OPEN)]
    rig.sink.acknowledge(3)
    rig.step()
    assert delivered_holes(rig) == [(2, 4, "exchange", State.BEYOND)]


def test_nothing_is_asked_for_that_could_not_be_read(rig: Rig) -> None:
    """In the end, and while the window is full."""
    rig.append(frame(1), frame(5))
    store(rig)
    rig.now_s += 10.0
    rig.asked.clear()
    rig.loop.step(hurry=True, reads=False)
    assert not rig.asked
    rig.append(*(frame(number) for number in range(6, 6 + rig.window)))
    rig.step()
    assert len(rig.sink.taken) == 2 + rig.window
    assert not rig.asked
    rig.sink.acknowledge(3)
    rig.step()
    assert len(rig.asked) == 1, "there is room for the answer"


def test_what_is_given_up_while_nothing_is_under_way_is_written_within_a_second(
    rig: Rig, clock: list[float]
) -> None:
    rig.append(frame(1), frame(5, T0_US + 1))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    rig.seen.symbols[SYMBOL].newest_us = T0_US + 2 * DAY_US
    rig.seen.touched.add(SYMBOL)
    clock[0] += 10
    rig.loop.step()
    assert rig.ledger is not None
    assert rig.ledger.dirty
    clock[0] += loop.COMMIT_S - 0.01
    rig.loop.step()
    assert [state for *_, state in delivered_holes(rig)] == [State.OPEN]
    clock[0] += 0.02
    rig.loop.step()
    assert [state for *_, state in delivered_holes(rig)] == [State.BEYOND]


# --- When it is written.


@pytest.mark.parametrize(("records", "after_s"), [(99, 1.0), (100, 0.2)])
def test_what_is_acknowledged_is_written_within_a_second_and_much_of_it_sooner(
    tmp_path: Path, clock: list[float], records: int, after_s: float
) -> None:
    rig = Rig(tmp_path, window=10_000)
    rig.append(*(frame(number) for number in range(1, records + 1)))
    rig.loop.step()
    for count in (1, records):
        rig.sink.acknowledge(count)
        rig.loop.step()
    clock[0] += after_s - 0.01
    rig.loop.step()
    assert rig.reader.acknowledged == 0
    clock[0] += 0.02
    rig.loop.step()
    assert rig.reader.used_bytes == 0
    rig.writer.close()


@pytest.mark.parametrize(("acknowledged", "at_once"), [(24, False), (25, True)])
def test_a_quarter_of_the_window_is_written_at_once(
    rig: Rig, clock: list[float], acknowledged: int, at_once: bool
) -> None:
    rig.append(*(frame(number) for number in range(1, 41)))
    rig.loop.step()
    rig.sink.acknowledge(acknowledged)
    rig.loop.step()
    assert rig.ids == [str(number) for number in range(1, 41)]
    assert bool(rig.reader.acknowledged) == at_once


@pytest.mark.parametrize(("read", "at_once"), [(49, False), (50, True)])
def test_half_a_window_that_waits_is_reason_to_write_at_once(
    rig: Rig, clock: list[float], read: int, at_once: bool
) -> None:
    rig.append(*(frame(number) for number in range(1, read + 1)))
    rig.loop.step()
    rig.sink.acknowledge(1)
    rig.loop.step()
    assert len(rig.ids) == read
    assert bool(rig.reader.acknowledged) == at_once


def test_a_ledger_that_is_busy_is_told_and_tried_again_a_second_later(
    rig: Rig, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_BUSY_S", 0.01)
    rig.restart()
    rig.append(frame(1))
    rig.step()
    other = sqlite3.connect(rig.ledger_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    rig.sink.acknowledge(1)
    rig.step()
    assert "locked" in rig.loop.trouble
    assert rig.counters[Field.LEDGER_ERRORS] == 1
    assert (rig.reader.acknowledged, rig.loop.idle, rig.sink.settled) == (0, False, 0)
    other.close()
    clock[0] += 0.99
    rig.step()
    assert rig.loop.trouble, "not before its time, whatever the hurry"
    clock[0] += 0.02
    rig.step()
    assert (rig.loop.trouble, rig.loop.idle, rig.sink.settled) == ("", True, 1)
    assert rig.reader.used_bytes == 0
    assert rig.counters[Field.LEDGER_ERRORS] == 1


def test_in_the_end_consumers_are_told_how_far_all_is_there(rig: Rig) -> None:
    rig.append(frame(1))
    store(rig)
    rig.append(frame(2))
    store(rig)
    assert [coverage.to_id for coverage in rig.sink.coverages] == [1], "the next in ten seconds"
    flushes, settled = rig.sink.flushes, rig.sink.settled
    rig.loop.finish()
    assert [coverage.to_id for coverage in rig.sink.coverages] == [1, 2]
    assert rig.sink.settled == settled + 1, "its last mark is in the ledger"
    assert rig.sink.flushes == flushes + 1
    rig.loop.finish()
    assert len(rig.sink.coverages) == 2, "once"


class Patient(ManualSink):
    def wait_s(self) -> float:
        return 60.0


def test_it_waits_until_something_is_due(rig: Rig, clock: list[float]) -> None:
    rig.sink = Patient()
    rig.restart()
    assert rig.loop.wait_s() == 0.0, "its first chores"
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.IDLE_CHORES_S)
    rig.append(frame(1))
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.CHORES_S), "trades come"
    rig.sink.acknowledge(1)
    clock[0] += 0.5
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.CHORES_S)
    clock[0] += 0.9
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(0.1), "until what is stored is written"
    clock[0] += 5
    assert rig.loop.wait_s() == 0.0


def test_it_does_not_wait_while_a_damaged_part_is_looked_through(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", 4096)
    monkeypatch.setattr(ring.records, "CHUNK_BYTES", 4096)
    rig.sink = Patient()
    rig.restart()
    rig.append(frame(1, price="1" * 50_000), frame(2))
    damaged = rig.writer.committed - record_bytes(len(frame(2)))
    with rig.path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(bytes(damaged))
    waits: list[float] = []
    while not rig.sink.taken:
        rig.loop.step()
        waits.append(rig.loop.wait_s())
    assert waits.count(0.0) >= 10
    assert waits[0] > 0.0, "it may only not be there yet"


def test_the_clock_s_offset_is_told_once_a_second_and_only_if_trades_came(
    rig: Rig, clock: list[float]
) -> None:
    rig.append(frame(1))
    rig.step()
    offset_ns = 10**18 - T0_US * 1000
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(offset_ns)
    lower_ns = offset_ns - 10**15
    rig.append(frame(2, T0_US + 10**12))
    clock[0] += 0.5
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(offset_ns)
    clock[0] += 0.5
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(lower_ns)
    clock[0] += 10 * OFFSET_SPAN_S
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == NO_OFFSET


# --- Rings that are read again.


def test_what_the_ledger_knows_to_be_done_is_left_out_of_a_salvaged_ring(rig: Rig) -> None:
    rig.append(frame(1), frame(2))
    store(rig)
    rig.append(frame(3), frame(4))
    data = rig.path.read_bytes()
    # Neither its header nor its cursors can be believed any more.
    rig.path.write_bytes(bytes(HEADER_BYTES) + data[HEADER_BYTES:])
    rig.sink.taken.clear()
    delivery = Delivery(SalvagedReader(rig.path), rig.parts, rig.counters, 100, 1000)
    rig.sink.end = None
    delivery.step(hurry=True)
    done, third, fourth = rig.sink.taken
    assert (done.end, done.symbol, done.trades, done.dead) == (1002, None, (), None)
    assert [json.loads(e.frame.payload)["data"]["t"] for e in (third, fourth)] == [3, 4]
    assert [third.end, fourth.end] == [1003, 1004]
    rig.sink.acknowledge(3)
    delivery.step(hurry=True)
    assert delivery.idle
    assert delivery.base == 1004
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    assert (content.symbols[SYMBOL].last_id, len(content.rings)) == (4, 1)
    again = Delivery(SalvagedReader(rig.path), rig.parts, rig.counters, 100, 2000)
    rig.sink.taken.clear()
    again.step(hurry=True)
    (all_done,) = rig.sink.taken
    assert (all_done.end, all_done.symbol) == (2004, None)
    rig.sink.acknowledge(1)
    again.step(hurry=True)
    assert again.idle


def test_a_ring_whose_position_the_ledger_knows_is_gone_on_with_there(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    behind = rig.reader.acknowledged
    reader = RingReader(rig.path)
    assert reader.seek(0)
    assert rig.reader.acknowledged == 0, "as if the cursor's store had been lost"
    Delivery(reader, rig.parts, rig.counters, 100)
    assert (reader.acknowledged, reader.position) == (behind, behind)


# --- What a frame holds.


def test_a_trade_whose_order_id_can_not_be_read_is_delivered_with_a_dead_letter(rig: Rig) -> None:
    rig.append(frame(1), frame(2, b="none"), frame(3))
    rig.step()
    assert rig.ids == ["1", "2", "3"]
    dead = rig.sink.taken[1].dead
    assert dead is not None
    assert dead.stage == "decode"
    assert rig.counters[Field.DEAD_LETTERS] == 1


def test_a_next_trade_with_an_older_time_leaves_the_newest_time(rig: Rig) -> None:
    rig.append(frame(1, T0_US), frame(2, T0_US - 10), frame(3, T0_US + 10), frame(4, T0_US + 5))
    rig.step()
    assert rig.seen.symbols[SYMBOL].newest_us == T0_US + 10
    assert [len(entry.trades) for entry in rig.sink.taken] == [1, 1, 1, 1]
    store(rig)
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    assert content.symbols[SYMBOL].newest_us == T0_US + 10


def test_what_does_not_fit_the_ids_is_delivered_and_told(
    rig: Rig, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "MAX_HOLES", 2)
    far = 10 + FAR + 1
    rig.append(frame(10), frame(far), *(frame(number) for number in (12, 14, 16)))
    rig.step()
    assert [entry["trade_id"] for entry in events.named(_FAR)] == [far]
    assert len(events.named("too many holes: the oldest are forgotten")) == 1
    newer = T0_US + 2 * EPOCH_US
    rig.append(frame(1, newer), frame(2, newer + 1))
    rig.step()
    assert [entry["trade_id"] for entry in events.named(_FAR)] == [far, 1]
    assert [entry["symbol"] for entry in events.named("trade ids began anew")] == [SYMBOL]
    assert rig.ids == [str(number) for number in (10, far, 12, 14, 16, 1, 2)]


_FAR = "a trade does not fit the ids of its symbol: delivered, not counted on"


def test_a_snapshot_shows_what_came_last_of_a_quiet_symbol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is not asked for."""
    monkeypatch.setattr(test_delivery_loop, "load", lambda _: load("kraken"))
    rig = Rig(tmp_path)
    names = {name: name for name in ("BTC/USD", "ETH/USD")}
    workers.publish(rig.metadata, {"symbols": names})

    def kraken(kind: str, *numbers: int) -> bytes:
        return json.dumps(
            {
                "channel": "trade",
                "type": kind,
                "data": [
                    {
                        "symbol": symbol, "side": "buy", "price": 1.5, "qty": 2.0,
                        "ord_type": "limit", "trade_id": number,
                        "timestamp": f"2024-05-27T12:33:10.{number:06}Z",
                    }
                    for symbol in names for number in numbers
                ],
            }, separators=(",", ":"),
        ).encode()  # fmt: skip

    rig.append(kraken("update", 7, 8))
    rig.step()
    for symbol in names:
        tell(rig, messages.SUBSCRIBED, connection=0, symbol=symbol)
    rig.append(kraken("snapshot", 6, 7, 8).replace(b"ETH/USD", b"XRP/USD"))
    wishes = asked(rig, 2.0)
    assert [(wish.symbol, wish.tail) for wish in wishes] == [("ETH/USD", True)]
    assert rig.counters[Field.DUPLICATES] == 3
    rig.writer.close()


# --- What the reader tells.


@pytest.mark.parametrize(
    ("kind", "fields", "cause"),
    [
        (messages.LOST, {"connection": 3, "reason": "silent"}, "disconnect: silent"),
        (messages.LOST, {"connection": 3, "reason": "x" * 99}, "disconnect: " + "x" * 68),
        (messages.FULL, {"connection": 3}, "ring full"),
        (messages.READER, {}, "restart"),
        (messages.ROOM, {"connection": 3, "seconds": 1}, "exchange"),
        ("of another version", {}, "exchange"),
        (messages.UNSUBSCRIBED, {"connection": 3, "symbol": SYMBOL}, UNSUBSCRIBED),
        (messages.UNSUBSCRIBED, {"connection": "3", "symbol": SYMBOL}, "exchange"),
    ],
)
def test_a_hole_is_laid_to_what_the_reader_told(
    rig: Rig, kind: str, fields: dict[str, object], cause: str
) -> None:
    rig.append(frame(1))
    tell(rig, kind, **fields)
    rig.append(frame(3))
    rig.step()
    assert seen_causes(rig) == [cause]


def test_a_damaged_part_is_the_cause_of_the_hole_over_it(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    with rig.path.open("r+b") as file:
        file.seek(HEADER_BYTES + record_bytes(len(frame(1))) + 40)
        file.write(b"\xff\xff")
    while len(rig.sink.taken) < 3:
        rig.step()
    assert seen_causes(rig) == ["damage"]


def test_a_request_that_failed_is_sent_again_and_at_once_by_a_new_reader(rig: Rig) -> None:
    rig.append(frame(1), frame(5))
    (wish,) = asked(rig)
    assert asked(rig, 60.0) == [], "it is out"
    for wrong in ({"first_id": 99}, {"first_id": "1"}, {"first_id": 1, "symbol": 5}):
        tell(rig, messages.PAGE_FAILED, **{"symbol": SYMBOL, "reason": "timeout", **wrong})
    assert asked(rig, 30.0) == [], "another one failed"
    told = {"symbol": SYMBOL, "first_id": 1, "reason": "timeout"}
    tell(rig, messages.PAGE_FAILED, **told, passing=False)
    assert asked(rig, 30.0) == [wish]
    assert rig.seen.symbols[SYMBOL].holes[0].tries == 1
    tell(rig, messages.PAGE_FAILED, **told, passing=True)
    assert asked(rig, 30.0) == [wish]
    assert rig.seen.symbols[SYMBOL].holes[0].tries == 1, "it says nothing about the hole"
    assert asked(rig, 30.0) == []
    tell(rig, messages.READER)
    assert asked(rig, 30.0) == [wish]


def test_what_a_connection_brings_of_a_symbol_that_it_left_is_not_wanted(rig: Rig) -> None:
    def bring(number: int, connection: int) -> bool:
        """Whether it is handed on."""
        before = len(rig.ids)
        assert rig.writer.append([frame(number)], FRAME, connection, 10**18) == 1
        rig.step()
        return len(rig.ids) > before

    assert bring(1, 3)
    tell(rig, messages.UNSUBSCRIBED, connection=3, symbol=SYMBOL)
    assert not bring(2, 3)
    assert bring(2, 4), "another one may"
    tell(rig, messages.SUBSCRIBED, connection=4, symbol=SYMBOL)
    assert not bring(3, 3)
    tell(rig, messages.SUBSCRIBED, connection=3, symbol=SYMBOL)
    assert bring(3, 3)
    for number, connection in ((4, 3), (5, 4)):
        tell(rig, messages.UNSUBSCRIBED, connection=connection, symbol=SYMBOL)
        assert not bring(number, connection)
    tell(rig, messages.CONNECTED, connection=3)
    assert bring(4, 3), "it is another one by that number"
    assert not bring(5, 4)
    tell(rig, messages.READER)
    assert bring(5, 4)


def test_a_batch_with_trades_of_a_symbol_that_was_left_hands_the_others_on(rig: Rig) -> None:
    workers.publish(rig.metadata, {"symbols": {"ETHUSDT": "ETH/USDT"}})
    tell(rig, messages.UNSUBSCRIBED, connection=0, symbol="ETHUSDT")
    rig.append(frame(1), frame(1, symbol="ETHUSDT"), frame(2))
    rig.step()
    assert [entry.symbol for entry in rig.sink.taken] == [None, SYMBOL, None, SYMBOL]
