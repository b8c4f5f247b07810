"""Batches as the serializer takes them out of a ring, what they must be the same as, and both ways
of handing them to a sink."""

from __future__ import annotations

import random
import string
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from batch_rig import Row, frame
from frame_twins import NEEDS_NATIVE
from kafka_rig import PARTITIONS, RECEIVED_NS, Bench, Stored, call, murmur2_partition, read_topic

from feedmono import native, ring
from feedmono.avro import TradeEncoder
from feedmono.counters import Counters
from feedmono.delivery.fast_path import Batch, batch_path
from feedmono.delivery.ids import Ids
from feedmono.exchanges import load
from feedmono.exchanges.base import Exchange
from feedmono.ring_layout import FRAME, Record
from feedmono.sinks.base import Entry, Frame
from feedmono.sinks.kafka_batch import BatchPending, HandOver
from feedmono.trade import BUY, STREAM, Trade

SYMBOLS = ("BTC/USD", "ETH/USD", "SOL/EUR", "X/EUR")
NAMES = {symbol: symbol for symbol in SYMBOLS}
BASE = 1 << 33
"""What the entries' ends count from."""
CONNECTION = 3
CAPACITY_BYTES = 32 << 20
BATCH_BYTES = 1 << 20
NOW_MS = 1_732_320_000_200


def letters(count: int) -> str:
    """A text that no compression makes smaller by much."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=count))


class Feed:
    """A ring that frames of Kraken's are written to, and the two ways to read it."""

    def __init__(self, folder: Path, names: dict[str, str] = NAMES) -> None:
        self._path = folder / "ring"
        ring.create(self._path, CAPACITY_BYTES)
        self._writer = ring.RingWriter(self._path)
        self._reader = ring.RingReader(self._path)
        self._names = names
        self._symbols = {
            symbol: Ids(Trade(symbol, 0, "1", "1", BUY, RECEIVED_NS // 2000)) for symbol in names
        }
        self._next_ids = dict.fromkeys(names, 1)
        self._frames = 0
        counters = Counters.create(folder / "counters")
        self._batch_path = batch_path(load("kraken"), TradeEncoder("kraken"), counters)

    def add(self, *symbols: str, padding: str = "") -> bytes:
        """A frame with the next trade of each of these symbols."""
        rows = []
        for symbol in symbols:
            trade_id = self._next_ids[symbol]
            when = f"2024-11-23T00:00:00.{trade_id:06}Z"
            side = "buy" if trade_id % 3 else "sell"
            rows.append(Row(trade_id, symbol, "64000.10", when, side))
            self._next_ids[symbol] += 1
        made = frame(*rows, padding=padding)
        received_ns = RECEIVED_NS + self._frames
        assert self._writer.append([made], FRAME, CONNECTION, received_ns) == 1
        self._frames += 1
        return made

    def add_many(self, count: int, trades: int = 1) -> None:
        """So many frames, whose symbols take turns."""
        for i in range(count):
            self.add(*[SYMBOLS[i % len(SYMBOLS)]] * trades)

    def add_all_kinds(self) -> None:
        """Frames with one trade and with several, of one symbol and of several, padded and not."""
        for i in range(600):
            symbol = SYMBOLS[i % len(SYMBOLS)]
            padding = letters((0, 0, 5, 900, 20_000)[i % 5])
            self.add(*[symbol] * (1, 1, 3, 7)[i % 4], padding=padding)
        self.add(*SYMBOLS)
        self.add(*[SYMBOLS[3]] * 100, padding=letters(1))

    def batches(self, records: int = 250) -> Iterator[Batch]:
        """All that is there and was not taken, in batches of so many records at most."""
        assert self._batch_path is not None, "batches need the native extension"
        while self._reader.position < self._reader.committed:
            batch = self._reader.take(
                self._batch_path.take,
                records,
                BATCH_BYTES,
                BASE,
                self._names,
                self._symbols,
                NOW_MS,
            )
            assert batch is not None, "a frame that is not usual"
            yield batch

    def forget(self) -> None:
        """Makes room for more in the ring."""
        self._reader.acknowledge(self._reader.position)

    def entries(self) -> list[Entry]:
        """What Python makes of all that is in the ring."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "trades", None)
            exchange, encoder = load("kraken"), TradeEncoder("kraken")
        reader = ring.RingReader(self._path)
        records = []
        while more := reader.read(10_000, CAPACITY_BYTES):
            records += more
        reader.close()
        return [_entry(record, exchange, encoder, self._names) for record in records]

    def lists(self, records: int = 250) -> Iterator[list[Entry]]:
        """All that is in the ring, to go message by message: lists of so many entries at most."""
        entries = self.entries()
        for begin in range(0, len(entries), records):
            yield entries[begin : begin + records]

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    yield made
    made.close()


Way = Callable[[Feed], Iterator[Sequence[Entry]]]

EITHER_WAY = pytest.mark.parametrize(
    "way",
    [
        pytest.param(Feed.batches, id="in batches", marks=NEEDS_NATIVE),
        pytest.param(Feed.lists, id="message by message"),
    ],
)
"""What holds of both ways through a sink."""


def _entry(
    record: Record, exchange: Exchange, encoder: TradeEncoder, names: dict[str, str]
) -> Entry:
    trades, origin, problems = exchange.decode(record.payload)
    assert (origin, problems) == (STREAM, ())
    place = (STREAM, record.received_ns, record.sequence, NOW_MS)
    encoded = encoder.encode(trades, names, *place)
    tagged = Frame(record.payload, record.connection, record.sequence, record.received_ns, STREAM)
    return Entry(BASE + record.end, tagged, trades[0].symbol, encoded)


def offer(bench: Bench, offered: deque[Sequence[Entry]], upto: int | None = None) -> int:
    """Hands batches or lists over as the serializer does, until none is left or the sink takes no
    more, or one reaches that end: how often one was split."""
    splits = 0
    while offered and (upto is None or offered[0][-1].end <= upto):
        entries = offered[0]
        taken = bench.sink.write(entries)
        if taken:
            bench.handed = entries[taken - 1].end
        if taken == len(entries):
            offered.popleft()
            continue
        if taken:
            if isinstance(entries, Batch):
                offered[0] = entries.split(taken)
            else:
                offered[0] = entries[taken:]
            splits += 1
        break
    return splits


def deliver(
    bench: Bench,
    lists: Iterable[Sequence[Entry]],
    meanwhile: Callable[[int], None] = lambda _: None,
    limit_s: float = 60.0,
    window_bytes: int = 1 << 40,
) -> int:
    """Hands over these batches or lists and polls until all is acknowledged; how often one was
    split.

    :param meanwhile: gets the acknowledged end after each poll; `Bench.handed` tells up to which
        end all is out by then.
    :param window_bytes: how much of the ring may be out and not acknowledged.
    """
    offered = deque(lists)
    end, splits = offered[-1][-1].end, 0
    deadline = time.monotonic() + limit_s
    bench.handed = bench.sink.poll(0) or BASE
    while (done := bench.sink.poll(0.005) or BASE) != end:
        meanwhile(done)
        assert done <= bench.handed
        assert time.monotonic() < deadline, f"{done - BASE} acknowledged; {bench.sink.trouble}"
        splits += offer(bench, offered, done + window_bytes)
    return splits


def watch_writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Gets how many records, and messages of the next one, each hand-over has taken."""
    told: list[tuple[int, int]] = []
    write = HandOver.write

    def told_write(self: HandOver, batch: object, at: int) -> tuple[int, int, BatchPending]:
        done = write(self, batch, at)  # type: ignore[arg-type]
        told.append(done[:2])
        return done

    monkeypatch.setattr(HandOver, "write", told_write)
    return told


# What is stored


def wire_prefix(bench: Bench) -> bytes:
    """What stands before each trade, as the registry tells it."""
    subject = f"{bench.config.schema_registry_url}/subjects/{bench.trades}-value"
    number: int = call("GET", f"{subject}/versions/latest")["id"]
    return b"\0" + number.to_bytes(4, "big")


def raw_messages(entries: Iterable[Entry]) -> list[Stored]:
    """The raw topic's messages of these entries, in their order."""
    found = []
    for entry in entries:
        key = (entry.symbol or "").encode()
        headers = {"frame": entry.frame.tag.encode()}
        partition = murmur2_partition(key, PARTITIONS)
        found.append(Stored(partition, key, entry.frame.payload, headers))
    return found


def trade_messages(entries: Iterable[Entry], prefix: bytes) -> list[Stored]:
    """The trades topic's messages of these entries, in their order."""
    found = []
    for entry in entries:
        for symbol, body in entry.trades:
            key = symbol.encode()
            partition = murmur2_partition(key, PARTITIONS)
            found.append(Stored(partition, key, prefix + body, {}))
    return found


def by_key(messages: Iterable[Stored]) -> dict[bytes | None, list[Stored]]:
    found = defaultdict(list)
    for message in messages:
        found[message.key].append(message)
    return found


def _unordered(messages: Iterable[Stored]) -> list[Stored]:
    return sorted(messages, key=lambda message: (message.value, str(message.headers)))


def assert_same(stored: list[Stored], expected: list[Stored], ordered: bool = True) -> None:
    """Each is stored exactly once, and, unless told otherwise, in the order of its key."""
    assert len(stored) == len(expected)
    if ordered:
        assert by_key(stored) == by_key(expected)
    else:
        assert _unordered(stored) == _unordered(expected)


def assert_stored(bench: Bench, entries: Sequence[Entry], ordered: bool = True) -> None:
    """The topics hold these entries and nothing else."""
    trades = trade_messages(entries, wire_prefix(bench))
    assert_same(read_topic(bench.kafka, bench.trades), trades, ordered)
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries), ordered)
