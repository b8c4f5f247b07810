"""What the Kafka sink's tests share: a sink at a bench, and an independent reader of its topics."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from broker import Kafka, MockKafka, MockRegistry, Registry, eventually, free_port
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from feedmono import log
from feedmono.config import KafkaConfig
from feedmono.sinks.base import Entry, Frame
from feedmono.sinks.kafka import KafkaSink
from feedmono.trade import STREAM, EncodedTrade

AnyKafka = Kafka | MockKafka
AnyRegistry = Registry | MockRegistry

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "币安人生USDT")
PARTITIONS = 4
RECEIVED_NS = 1_732_320_000_123_456_789


class Stored(NamedTuple):
    """A record as an independent consumer finds it."""

    partition: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


def murmur2_partition(key: bytes, partitions: int) -> int:
    """Where Java's default partitioner puts a key (`org.apache.kafka.common.utils.Utils`)."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * factor & mask
        k = (k ^ k >> 24) * factor & mask
        h = (h * factor & mask) ^ k
    if len(key) > whole:
        h = (h ^ int.from_bytes(key[whole:], "little")) * factor & mask
    h = (h ^ h >> 13) * factor & mask
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def read_topic(kafka: AnyKafka, topic: str) -> list[Stored]:
    """Everything that *topic* holds now, partition by partition in the order of offsets."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "independent",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    found: list[Stored] = []
    deadline = time.monotonic() + 30
    try:
        ends = end_offsets(consumer, topic)
        consumer.assign([TopicPartition(topic, p, 0) for p in ends])
        while any(
            consumer.position([TopicPartition(topic, p)])[0].offset < end for p, end in ends.items()
        ):
            assert time.monotonic() < deadline, f"{topic}: {len(found)} read of {ends}"
            for message in consumer.consume(10_000, 0.2):
                if message.error() is None:
                    headers: Any = message.headers() or ()
                    value, partition = message.value() or b"", message.partition()
                    assert partition is not None
                    found.append(Stored(partition, message.key(), value, dict(headers)))
        return found
    finally:
        consumer.close()


def end_offsets(consumer: Consumer, topic: str) -> dict[int, int]:
    """The partitions that hold something, and where they end. A partition that was just made, or
    whose broker just came back, has no leader for a moment."""
    deadline = time.monotonic() + 20
    while True:
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            places = [TopicPartition(topic, p) for p in partitions]
            ends = [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]
            return {p: end for p, end in zip(partitions, ends, strict=True) if end}
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def call(method: str, url: str, body: object = None) -> Any:
    """Asks the registry without its client."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


def entry(i: int, trades: int = 1, payload: bytes | None = None) -> Entry:
    """Entry number *i*, acknowledged as ``i + 1``, with bodies that name it."""
    symbol = SYMBOLS[i % len(SYMBOLS)]
    frame = Frame(payload or b"raw %d" % i, 3, 1000 + i, RECEIVED_NS + i, STREAM)
    bodies = [EncodedTrade(symbol, b"trade %d.%d" % (i, k)) for k in range(trades)]
    return Entry(i + 1, frame, symbol, bodies)


def bodies(entries: Sequence[Entry]) -> list[bytes]:
    return [trade.body for e in entries for trade in e.trades]


def payloads(entries: Sequence[Entry]) -> list[bytes]:
    return [e.frame.payload for e in entries if e.symbol is not None]


class Bench:
    """A sink, its topics, and the independent view of them."""

    def __init__(
        self,
        kafka: AnyKafka,
        registry: AnyRegistry | None,
        prefix: str,
        folder: Path,
        **properties: str,
    ) -> None:
        self.kafka = kafka
        url = registry.url if registry else f"http://127.0.0.1:{free_port()}"
        names = {k.replace("_", "."): v for k, v in properties.items()}
        self.config = KafkaConfig(kafka.bootstrap_servers, url, prefix, PARTITIONS, names)
        self.trades = f"{prefix}.testex"
        self.raw, self.dead = f"{self.trades}.raw", f"{self.trades}.dead"
        self.coverage = f"{self.trades}.coverage"
        self.folder = folder
        self.sink = self.new_sink()

    def new_sink(self) -> KafkaSink:
        logger = log.get(exchange="testex")
        return KafkaSink(self.config, "testex", linger_s=0.005, dead_dir=self.folder, log=logger)

    def create_topics(self, config: dict[str, str] | None = None) -> None:
        """Beforehand, with a configuration of their own or on a broker that needs it."""
        self.kafka.create_topics((self.raw, self.trades), PARTITIONS, config)
        single = 4 if isinstance(self.kafka, MockKafka) else 1
        self.kafka.create_topics((self.dead, self.coverage), single)

    def open(self) -> Bench:
        assert self.sink.open(), self.sink.trouble
        return self

    def deliver(
        self,
        entries: Sequence[Entry],
        limit_s: float = 60.0,
        meanwhile: Callable[[int], None] = lambda _: None,
        window: int = 1_000_000,
    ) -> None:
        """Hands over *entries* and polls until all are acknowledged.

        :param meanwhile: gets the acknowledged position after each poll; `handed` tells how many
            entries are out by then.
        :param window: how many may be out and not acknowledged.
        """
        deadline = time.monotonic() + limit_s
        self.handed = 0
        while (done := self.sink.poll(0.005) or 0) != entries[-1].end:
            meanwhile(done)
            assert done < entries[-1].end
            assert time.monotonic() < deadline, f"{done} acknowledged; {self.sink.trouble}"
            room = min(500, done + window - self.handed)
            self.handed += self.sink.write(entries[self.handed : self.handed + room])

    def wait_gone(self, topic: str) -> None:
        """Waits until the broker neither lists the topic nor serves any of its partitions."""
        admin = self.kafka.admin()
        eventually(lambda: topic not in admin.list_topics(timeout=10).topics, 20, f"{topic} gone")
        consumer = Consumer(
            {"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "observer"}
        )
        try:
            for partition in range(PARTITIONS):
                with pytest.raises(KafkaException):
                    consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=1)
        finally:
            consumer.close()

    def raw_values(self) -> list[bytes]:
        return [record.value for record in read_topic(self.kafka, self.raw)]

    def trade_bodies(self) -> list[bytes]:
        return [record.value[5:] for record in read_topic(self.kafka, self.trades)]

    def set_limit(self, topic: str, limit_bytes: int) -> None:
        """Changes a topic's max.message.bytes and waits until the broker goes by it."""
        change = ConfigEntry(
            "max.message.bytes", str(limit_bytes), incremental_operation=AlterConfigOpType.SET
        )
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])
        admin = self.kafka.admin()
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(10)
        asked = ConfigResource(ResourceType.TOPIC, topic)

        def known() -> bool:
            answer = admin.describe_configs([asked])[asked].result(10)
            return bool(answer["max.message.bytes"].value == str(limit_bytes))

        eventually(known, 10, "the new limit is known")


@pytest.fixture
def bench(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> Iterator[Bench]:
    """An open sink on whichever broker is there."""
    made = Bench(kafka, registry, topic_prefix, tmp_path / "dead")
    if isinstance(kafka, MockKafka):
        made.create_topics()
    yield made.open()
    made.sink.close()


@pytest.fixture
def real_bench(
    real_kafka: Kafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> Iterator[Bench]:
    """A sink, not opened yet, on the real broker, which runs again afterwards."""
    made = Bench(real_kafka, registry, topic_prefix, tmp_path / "dead")
    yield made
    made.sink.close()
    real_kafka.continue_signal()
    if not real_kafka.running:
        real_kafka.start()


@pytest.fixture
def short_queue(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> Iterator[Bench]:
    """An open sink whose client holds ten messages at most."""
    limit = {"queue_buffering_max_messages": "10"}
    made = Bench(kafka, registry, topic_prefix, tmp_path / "dead", **limit)
    made.create_topics()
    yield made.open()
    made.sink.close()
