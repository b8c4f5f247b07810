"""The independent count: every record read back by a plain consumer, every id held against what
the exchange made. It runs in a process of its own, after the measured part: ``python count.py``
takes an `Order` as JSON on standard input and prints a `Counted`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.latency import Latencies

_TRADE = Path(__file__).resolve().parents[2] / "schemas" / "trade.avsc"
_LIMIT_S = 600.0
_LEADER_LIMIT_S = 20.0
_TIMESTAMP_LOG_APPEND = 2

STAMP_TO_SOCKET = "exchange's stamp to socket"
SOCKET_TO_NORMALIZED = "socket to normalized"
SOCKET_TO_BROKER = "socket to broker"


@dataclass(frozen=True, slots=True)
class Order:
    """What to count."""

    exchange: str
    expected: Mapping[str, tuple[int, int]]
    """By symbol, the first and the last id that the exchange made."""
    topic: str = ""
    """Of the normalized trades; that of the frames has ``.raw`` behind it."""
    bootstrap_servers: str = ""
    """Empty: files are read."""
    folder: str = ""
    since_us: int = 0
    until_us: int = 2**62
    """Trades that came off the socket then count for the latencies (Unix time)."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was found."""

    trades: int
    missing: int
    doubled: int
    raw_missing: int
    """Trades of which no frame was found."""
    foreign: int
    """Trades that the exchange never made."""
    hops: Mapping[str, str] = field(default_factory=dict)
    """Latencies by hop, encoded."""


class Stored(NamedTuple):
    """A record as it was found."""

    key: str
    value: Mapping[str, Any] | bytes
    """A normalized trade, or a frame's bytes."""
    appended_ms: int
    """When the broker appended it; 0: it does not tell."""


def count(order: Order) -> Counted:
    """Runs the count in a process of its own. :raises RuntimeError: it failed."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        input=json.dumps(asdict(order)),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the count failed: {done.stderr[-2000:]}")
    return Counted(**json.loads(done.stdout))


class Marks:
    """How often each id was met."""

    def __init__(self, expected: Mapping[str, tuple[int, int]]) -> None:
        self._first = {symbol: first for symbol, (first, _) in expected.items()}
        self._times = {s: bytearray(max(0, last + 1 - f)) for s, (f, last) in expected.items()}
        self.met = 0
        self.foreign = 0

    def meet(self, symbol: str, trade_id: int) -> None:
        times = self._times.get(symbol, b"")
        at = trade_id - self._first.get(symbol, 0)
        self.met += 1
        if not 0 <= at < len(times):
            self.foreign += 1
        elif isinstance(times, bytearray):
            times[at] = min(times[at] + 1, 255)

    @property
    def missing(self) -> int:
        return sum(times.count(0) for times in self._times.values())

    @property
    def doubled(self) -> int:
        return sum(len(t) - t.count(0) - t.count(1) for t in self._times.values())


class Hops:
    """How long trades took between the stations that left a time in them."""

    def __init__(self, since_us: int, until_us: int) -> None:
        self._span_us = range(since_us, until_us)
        self._hops = {
            name: Latencies() for name in (STAMP_TO_SOCKET, SOCKET_TO_NORMALIZED, SOCKET_TO_BROKER)
        }

    def add(self, trade: Mapping[str, Any], appended_ms: int) -> None:
        received_us = trade["received_timestamp_us"]
        if trade["origin"] != "STREAM" or received_us not in self._span_us:
            return
        hops = self._hops
        hops[STAMP_TO_SOCKET].add_us(received_us - trade["exchange_timestamp_us"])
        # Clocks of milliseconds are cut, not rounded: the middle is meant.
        hops[SOCKET_TO_NORMALIZED].add_us(trade["timestamp"] * 1000 + 500 - received_us)
        if appended_ms:
            hops[SOCKET_TO_BROKER].add_us(appended_ms * 1000 + 500 - received_us)

    def encoded(self) -> dict[str, str]:
        return {name: hop.encoded() for name, hop in self._hops.items() if len(hop)}


def counted(order: Order) -> Counted:
    """Counts here."""
    trades, frames = Marks(order.expected), Marks(order.expected)
    hops = Hops(order.since_us, order.until_us)
    read = _topic if order.bootstrap_servers else _files
    for record in read(order, "trades"):
        trade = record.value
        assert not isinstance(trade, bytes)
        trades.meet(trade["symbol"], int(trade["trade_id"]))
        hops.add(trade, record.appended_ms)
    for record in read(order, "raw"):
        assert isinstance(record.value, bytes)
        for symbol, trade_id in _RAW[order.exchange](record.key, json.loads(record.value)):
            frames.meet(symbol, trade_id)
    return Counted(
        trades.met,
        trades.missing,
        trades.doubled,
        frames.missing,
        trades.foreign,
        hops.encoded(),
    )


def _files(order: Order, kind: str) -> Iterator[Stored]:
    for path in sorted(Path(order.folder).glob(f"{kind}-*.avro")):
        with path.open("rb") as file:
            for record in fastavro.reader(file):
                assert isinstance(record, dict)
                if kind == "trades":
                    yield Stored(record["symbol"], _plain(record), 0)
                else:
                    yield Stored("", record["payload"], 0)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Times as numbers: fastavro's readers make dates of logical types."""
    for name, unit in (
        ("timestamp", 1_000),
        ("exchange_timestamp_us", 1_000_000),
        ("received_timestamp_us", 1_000_000),
    ):
        if not isinstance(record[name], int):
            record[name] = round(record[name].timestamp() * unit)
    return record


def _topic(order: Order, kind: str) -> Iterator[Stored]:
    raw = kind == "raw"
    schema = fastavro.parse_schema(_without_logical_types(json.loads(_TRADE.read_text())))
    for message in _messages(order.bootstrap_servers, order.topic + (".raw" if raw else "")):
        value, key = message.value() or b"", message.key() or b""
        assert isinstance(value, bytes)
        name = key.decode() if isinstance(key, bytes) else key
        kind_of_time, appended_ms = message.timestamp()
        if kind_of_time != _TIMESTAMP_LOG_APPEND:
            appended_ms = 0
        if raw:
            yield Stored(name, value, appended_ms)
        else:
            trade: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)
            yield Stored(name, trade, appended_ms)


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _without_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    if isinstance(schema, list):
        return [_without_logical_types(each) for each in schema]
    return schema


def _messages(bootstrap_servers: str, topic: str) -> Iterator[Message]:
    """All that the topic holds."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "feedmono-bench",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "check.crcs": True,
            "enable.partition.eof": True,
        }
    )
    try:
        open_partitions = _filled(consumer, topic)
        consumer.assign([TopicPartition(topic, number, 0) for number in open_partitions])
        deadline = time.monotonic() + _LIMIT_S
        while open_partitions:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} could not be read within {_LIMIT_S:g} s")
            for message in consumer.consume(10_000, 0.5):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition() or 0)
    finally:
        consumer.close()


def _filled(consumer: Consumer, topic: str) -> set[int]:
    """The partitions that hold something. One that was just made has no leader for a moment."""
    deadline = time.monotonic() + _LEADER_LIMIT_S
    while True:
        try:
            numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            return {
                number
                for number in numbers
                if consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
            }
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


Ids = Iterator[tuple[str, int]]


def _binance(key: str, frame: Any) -> Ids:
    """Symbol and id of each trade in a frame or a page, which has no symbol of its own."""
    if isinstance(frame, list):
        for row in frame:
            yield key, row["id"]
    else:
        yield frame["data"]["s"], frame["data"]["t"]


def _kraken(key: str, frame: Any) -> Ids:
    if "result" in frame:
        for rows in frame["result"].values():
            for row in rows if isinstance(rows, list) else ():
                yield key, row[6]
    else:
        for trade in frame["data"]:
            yield trade["symbol"], trade["trade_id"]


_RAW: Mapping[str, Callable[[str, Any], Ids]] = {"binance": _binance, "kraken": _kraken}


if __name__ == "__main__":
    content = json.load(sys.stdin)
    content["expected"] = {symbol: tuple(ids) for symbol, ids in content["expected"].items()}
    print(json.dumps(asdict(counted(Order(**content)))))
