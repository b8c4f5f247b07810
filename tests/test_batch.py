"""Batches: what is usual, taken out of the ring in C. What is left behind is what the way record by
record leaves, whatever comes."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from delivery_rig import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedmono import messages, native
from feedmono.avro import TradeEncoder
from feedmono.counters import BOUNDS_US, Field, Histogram
from feedmono.delivery import loop
from feedmono.delivery.fast_path import Batch, FastPath, Taken, batch_path
from feedmono.delivery.ids import Ids
from feedmono.exchanges import load
from feedmono.ring import RingReader
from feedmono.ring_layout import BINARY, COMMITTED_WORD, EVENT, FRAME, PAGE
from feedmono.sinks.base import Entry, Frame
from feedmono.trade import STREAM, EncodedTrade, Trade

if native.trades is None:
    pytest.skip(f"there are no batches: {native.describe()}", allow_module_level=True)

T0_US = 1_723_161_255_342_000
RECEIVED_NS = T0_US * 1000 + 7_000_500
NOW_NS = RECEIVED_NS + 12_345_678
NAMES = {"BTC/USD": "BTC/USD", "ETH/USD": "ETH/USD", "X/Y": "X/Y"}


class Row(NamedTuple):
    """One trade of a Kraken frame."""

    trade_id: int
    symbol: str = "BTC/USD"
    price: str = "61837.5"
    time: str = "2024-08-08T23:54:15.342000Z"


def frame(*rows: Row, kind: str = "update", more: str = "") -> bytes:
    """A frame of Kraken's; *more* is text between its outer keys."""
    trades = ",".join(
        f'{{"symbol":"{row.symbol}","side":"sell","price":{row.price},"qty":0.00010000,'
        f'"ord_type":"market","trade_id":{row.trade_id},"timestamp":"{row.time}"}}'
        for row in rows
    )
    return f'{{"channel":"trade",{more}"type":"{kind}","data":[{trades}]}}'.encode()


def next_to(*frames: bytes) -> dict[str, Ids]:
    """What was seen before these frames."""
    known: dict[str, Ids] = {}
    decode = load("kraken").decode
    for payload in frames:
        for trade in decode(payload).trades:
            known.setdefault(trade.symbol, Ids(trade._replace(trade_id=trade.trade_id - 1)))
    return known


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, exchange="kraken", names=NAMES)
    yield made
    made.writer.close()


class Taker:
    """Takes batches out of a rig's ring."""

    def __init__(self, rig: Rig, known: dict[str, Ids]) -> None:
        path = batch_path(load("kraken"), TradeEncoder("kraken"), rig.counters)
        assert path is not None
        self.path, self.reader, self.known = path, rig.reader, known

    def take(self, room: int = 1000, max_bytes: int = 1 << 20) -> Batch | None:
        now_ms = NOW_NS // 1_000_000
        return self.reader.take(self.path.take, room, max_bytes, 0, NAMES, self.known, now_ms)

    def taken(self) -> Batch:
        batch = self.take()
        assert batch is not None
        return batch


def append(rig: Rig, *frames: bytes, kind: int = FRAME, flags: int = 0) -> None:
    assert rig.writer.append(frames, kind, 3, RECEIVED_NS, flags) == len(frames)


def ids_of(batch: Sequence[Entry]) -> list[int]:
    """The trade ids of all frames."""
    decode = load("kraken").decode
    return [t.trade_id for entry in batch for t in decode(entry.frame.payload).trades]


ONE_BY_ONE = [frame(Row(11)), frame(Row(7, "ETH/USD")), frame(Row(12, price="0.5"))]


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
    assert [trade.symbol for trade in batch[0].trades] == [r.symbol for r in _rows(frames[0])]
    assert ids_of(batch) == [11, 12, 5, 13, 14]
    assert (known["BTC/USD"].last_id, known["ETH/USD"].last_id) == (14, 5)


def _rows(payload: bytes) -> list[Trade]:
    return list(load("kraken").decode(payload).trades)


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


# --- A sequence of entries


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
    assert known["BTC/USD"].last == _rows(frames[-1])[0]


# --- Into the ledger


def test_what_is_stored_goes_into_the_ledger_with_its_latency(rig: Rig) -> None:
    frames = [frame(Row(11), Row(12)), frame(Row(7, "ETH/USD"))]
    append(rig, *frames)
    batch = Taker(rig, next_to(*frames)).taken()
    known, changed = next_to(*frames), set[str]()
    before = rig.counters.buckets(Histogram.DELIVERY)
    assert batch.deliver(known, changed, NOW_NS) == (2, 3)
    assert changed == {"BTC/USD", "ETH/USD"}
    assert known["BTC/USD"].last == _rows(frames[0])[1]
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


# --- The same as record by record, whatever comes

_TIMES = ["2024-08-08T23:54:15.342000Z"] * 6 + [
    "2024-08-08T23:54:15.341000Z",
    "2024-08-08T23:54:19.000000Z",
    "2023-08-08T23:54:15.342000Z",
]
_STEPS = [1] * 12 + [0, -1, 2, 5]


class Action(NamedTuple):
    """Something that happens."""

    what: str
    symbols: Sequence[str] = ()
    steps: Sequence[int] = ()
    times: Sequence[str] = ()
    number: int = 0


_SYMBOL = st.sampled_from(["BTC/USD"] * 4 + ["ETH/USD"] * 2 + ["A/B"])
_ACTION = st.one_of(
    st.builds(
        Action,
        st.sampled_from(["frame"] * 12 + ["snapshot", "exponent", "binary"]),
        st.lists(_SYMBOL, min_size=1, max_size=4),
        st.lists(st.sampled_from(_STEPS), min_size=4, max_size=4),
        st.lists(st.sampled_from(_TIMES), min_size=4, max_size=4),
    ),
    st.builds(Action, st.just("run"), number=st.integers(1, 30)),
    st.builds(Action, st.sampled_from(["garbage", "event", "gone", "step", "restart"])),
    st.builds(Action, st.just("acknowledge"), number=st.integers(0, 40)),
    st.builds(Action, st.just("room"), number=st.integers(0, 20)),
)


def play(folder: Path, actions: Sequence[Action]) -> tuple[object, ...]:
    """What is left behind."""
    folder.mkdir()
    rig = Rig(folder, window=40, exchange="kraken", names=NAMES)
    last: dict[str, int] = {}

    def made(action: Action) -> bytes:
        rows = []
        for symbol, step, when in zip(action.symbols, action.steps, action.times, strict=False):
            last[symbol] = max(1, last.get(symbol, 10) + step)
            price = "1e5" if action.what == "exponent" else "1.50"
            rows.append(Row(last[symbol], symbol, price, when))
        return frame(*rows, kind="snapshot" if action.what == "snapshot" else "update")

    def act(action: Action) -> None:
        if action.symbols:
            append(rig, made(action), flags=BINARY if action.what == "binary" else 0)
        elif action.what == "run":
            run = Action("frame", ["BTC/USD"], [1], _TIMES)
            append(rig, *(made(run) for _ in range(action.number)))
        elif action.what == "garbage":
            append(rig, b"garbage")
        elif action.what == "event":
            append(rig, messages.event(messages.LOST, connection=3, reason="cut"), kind=EVENT)
        elif action.what == "gone":
            gone = messages.event(messages.UNSUBSCRIBED, connection=3, symbol="ETH/USD")
            append(rig, gone, kind=EVENT)
        elif action.what == "room":
            rig.sink.room = len(rig.sink.taken) + action.number
        elif action.what == "acknowledge" and rig.sink.taken:
            taken = rig.sink.taken
            done = sum(entry.end <= (rig.sink.end or 0) for entry in taken)
            rig.sink.acknowledge(max(1, min(len(taken), done + action.number)))
            rig.step()
        elif action.what == "restart" and not rig.sink.taken:
            rig.restart()
        elif action.what == "step":
            rig.step()

    for action in actions:
        act(action)
    rig.sink.room = 1_000_000
    deadline = time.monotonic() + 30
    while not rig.loop.idle or rig.reader.used_bytes:
        assert time.monotonic() < deadline
        if rig.sink.taken:
            rig.sink.acknowledge(len(rig.sink.taken))
        rig.step()
    assert rig.ledger is not None
    fields = [rig.counters[field] for field in _COUNTED]
    shown = [_shown(known) for known in (rig.seen.symbols, rig.ledger.symbols)]
    delivered = rig.counters.buckets(Histogram.DELIVERY)
    rig.writer.close()
    return rig.sink.taken, shown, fields, delivered, rig.reader.position


_COUNTED = (
    Field.TRADES, Field.DELIVERED_TRADES, Field.DUPLICATES, Field.DEAD_LETTERS,
    Field.LAST_TRADE_NS, Field.HOLES, Field.HOLE_TRADES, Field.LATE,
)  # fmt: skip


def _shown(known: dict[str, Ids]) -> dict[str, object]:
    return {
        symbol: (
            ids.first_id, ids.last_id, ids.last_edge, ids.newest_us, ids.epoch, ids.sequence,
            [(hole.first_id, hole.last_id, hole.cause) for hole in ids.holes], list(ids.islands),
            dict(ids._strays),
        )
        for symbol, ids in known.items()
    }  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=st.lists(_ACTION, max_size=25))
def test_both_ways_leave_the_same_behind(
    actions: list[Action], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ways")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: NOW_NS)
        in_batches = play(folder / "batches", actions)
        patch.setattr(native, "trades", None)
        one_by_one = play(folder / "records", actions)
    for one, other in zip(in_batches, one_by_one, strict=True):
        assert one == other


def test_usual_trades_do_come_in_batches(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the law above would compare the same way with itself."""
    written: list[type] = []
    write = rig.sink.write

    def note(entries: Sequence[Entry]) -> int:
        written.append(type(entries))
        return write(entries)

    monkeypatch.setattr(rig.sink, "write", note)
    append(rig, frame(Row(1)))
    rig.step()
    append(rig, *(frame(Row(number)) for number in range(2, 50)))
    rig.step()
    assert len(rig.sink.taken) == 49
    assert native.trades is not None
    assert written == [list, native.trades.Batch], "the first trade of a symbol comes alone"


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


# --- Bad arguments, memory


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
