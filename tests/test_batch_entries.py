"""A batch is the sequence of its entries, whole and in parts, and costs no memory beyond them."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_rig import NAMES, NOW_NS, ONE_BY_ONE, Row, Taker, append, frame, next_to, rig, rows
from delivery_rig import Rig
from frame_twins import NEEDS_NATIVE
from kafka_batch_rig import Feed, feed

from feedmono import native
from feedmono.avro import TradeEncoder
from feedmono.counters import BOUNDS_US, Histogram
from feedmono.delivery.fast_path import Batch, Taken
from feedmono.exchanges import load
from feedmono.sinks.base import Entry, Frame
from feedmono.trade import STREAM, EncodedTrade

__all__ = ["feed", "rig"]

pytestmark = NEEDS_NATIVE


def test_it_is_a_sequence(rig: Rig) -> None:
    frames = [frame(Row(number)) for number in range(1, 11)]
    append(rig, *frames)
    batch = Taker(rig, next_to(*frames)).taken()
    assert isinstance(batch, Batch)
    entries = list(batch)
    assert len(batch) == 10
    assert [batch[-1], batch[3]] == [entries[-1], entries[3]]
    assert batch[2:5] == entries[2:5]
    assert batch[::-3] == entries[::-3]
    for wrong in (10, -11):
        with pytest.raises(IndexError, match="no such entry"):
            batch[wrong]
    with pytest.raises(TypeError, match="number, or a slice"):
        batch["x"]  # type: ignore[call-overload]


def test_a_batch_is_the_list_of_the_entries_that_python_makes(feed: Feed) -> None:
    feed.add_all_kinds()
    entries = feed.entries()
    batches = list(feed.batches())
    assert len(batches) > 2
    assert [entry for batch in batches for entry in batch] == entries
    first = batches[0]
    own = entries[: len(first)]
    assert list(first) == own == list(reversed(list(reversed(first))))
    assert (first[0], first[-1], first[-len(first)]) == (own[0], own[-1], own[0])
    assert first[3:9] == own[3:9]
    assert first[::-2] == own[::-2]
    assert first[5:5] == []
    assert own[7] in first
    with pytest.raises(IndexError):
        first[len(first)]
    with pytest.raises(IndexError):
        first[-len(first) - 1]
    assert first.end == own[-1].end
    assert first.sequence == own[-1].frame.sequence
    assert first.trades == sum(len(entry.trades) for entry in own)


def test_it_can_be_split_again_and_again(rig: Rig) -> None:
    frames = [frame(Row(number)) for number in range(1, 11)]
    append(rig, *frames)
    first = Taker(rig, next_to(*frames)).taken()
    entries = list(first)
    third = first.split(3)
    second, third = third, third.split(2)
    assert [list(first), list(second), list(third)] == [entries[:3], entries[3:5], entries[5:]]
    assert [part.end for part in (first, second, third)] == [entries[n].end for n in (2, 4, 9)]
    assert [part.trades for part in (first, second, third)] == [3, 2, 5]
    assert [first.until(entries[n].end - 1) for n in (0, 1, 3)] == [0, 1, 3]
    assert second.until(entries[2].end) == 0
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match="both parts"):
            third.split(wrong)
    known = next_to(*frames)
    for part in (first, second, third):
        assert part.deliver(known, set(), NOW_NS) == (len(part), part.trades)
    assert known["BTC/USD"].last_id == 10
    assert known["BTC/USD"].last == rows(frames[-1])[0]


def test_the_parts_of_a_batch_hold_what_it_held(feed: Feed) -> None:
    feed.add_all_kinds()
    entries = feed.entries()
    batch = next(feed.batches())
    own = entries[: len(batch)]
    rest = batch.split(10)
    last = rest.split(1)
    assert (list(batch), list(rest), list(last)) == (own[:10], own[10:11], own[11:])
    assert (batch.end, rest.end, last.end) == (own[9].end, own[10].end, own[-1].end)
    assert rest.trades == len(own[10].trades)
    assert last.until(own[11].end - 1) == 0
    assert last.until(own[11].end) == 1
    assert last.until(own[-1].end + 1) == len(last)
    del batch, rest
    gc.collect()
    assert list(last) == own[11:]
    for count in (0, len(last), -1):
        with pytest.raises(ValueError, match="both parts"):
            last.split(count)


def test_it_refuses_what_it_can_not_work_with(rig: Rig, tmp_path: Path) -> None:
    assert native.trades is not None
    exchange, encoder = load("kraken"), TradeEncoder("kraken")
    fit: dict[str, Any] = {
        "reader": exchange.native_reader, "encoder": encoder.native, "frame": Frame,
        "entry": Entry, "encoded": EncodedTrade, "taken": Taken, "stream": STREAM, "symbol": 0,
        "trade_id": 1, "time": 5, "bounds_us": BOUNDS_US,
        "receive": rig.counters.words(Histogram.RECEIVE),
        "delivery": rig.counters.words(Histogram.DELIVERY),
    }  # fmt: skip
    unfit: list[tuple[str, Any, type[Exception]]] = [
        ("reader", encoder.native, TypeError), ("encoder", print, TypeError),
        ("frame", int, TypeError), ("symbol", 16, TypeError), ("time", -1, TypeError),
        ("bounds_us", (1,) * 64, ValueError), ("bounds_us", ("x",), TypeError),
        ("bounds_us", (1, 2), ValueError), ("receive", b"too short", BufferError),
    ]  # fmt: skip
    for name, value, error in unfit:
        with pytest.raises(error):
            native.trades.FastPath(**{**fit, name: value})
    taker = Taker(rig, {})
    data = rig.reader._map
    for place in [(7, 0), (1 << 40, 0), (rig.reader.capacity_bytes, -8)]:
        with pytest.raises(ValueError, match="do not fit the ring"):
            taker.path.take(data, place[0], place[1], 1, 1, 0, 1, 0, NAMES, {}, 1)
    with pytest.raises(TypeError):
        native.trades.Batch()


def test_memory_does_not_grow_with_batches(rig: Rig) -> None:
    number = 1
    taker = Taker(rig, next_to(frame(Row(1))))
    stored = next_to(frame(Row(1)))

    def work() -> None:
        nonlocal number
        append(rig, *(frame(Row(number + n)) for n in range(20)))
        number += 20
        batch = taker.taken()
        rest = batch.split(5)
        assert batch.deliver(stored, set(), NOW_NS) == (5, 5)
        assert rest.deliver(stored, set(), NOW_NS) == (15, 15)
        assert len(batch.items()) == len(batch[:]) == 5
        rig.reader.acknowledge(rig.reader.position)

    assert _growth_bytes(work, 2000) < 40_000


def _growth_bytes(work: Callable[[], None], times: int) -> int:
    for _ in range(times // 10):
        work()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(times):
        work()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown


def test_neither_batches_nor_their_entries_are_the_garbage_collectors_business(rig: Rig) -> None:
    append(rig, *ONE_BY_ONE)
    batch = Taker(rig, next_to(*ONE_BY_ONE)).taken()
    items = batch.items()
    made: list[object] = [batch, *items, *batch, *(item.trades[0] for item in items)]
    assert not any(map(gc.is_tracked, made))
    assert sys.getrefcount(batch) == 3  # itself, the list, the argument
