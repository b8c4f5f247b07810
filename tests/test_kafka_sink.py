"""The Kafka sink against a real broker and a real registry: what arrives message by message, how it
opens, what a killed process leaves."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest
from broker import Kafka, MockRegistry, Registry, eventually
from kafka_rig import (
    PARTITIONS,
    RECEIVED_NS,
    AnyKafka,
    AnyRegistry,
    Bench,
    bench,
    bodies,
    call,
    entry,
    murmur2_partition,
    payloads,
    read_topic,
    real_bench,
    short_queue,
)

from feedmono import avro, log, resources
from feedmono.config import KafkaConfig
from feedmono.sinks.base import Entry, Frame
from feedmono.sinks.kafka import KafkaSink
from feedmono.sinks.kafka_client import BrokerTrouble
from feedmono.sinks.kafka_topics import probe_broker
from feedmono.sinks.registry import RegistryTrouble, probe_registry
from feedmono.trade import BUY, STREAM, Trade

__all__ = ["bench", "real_bench", "short_queue"]


def assert_in_order(bench: Bench) -> None:
    """Per symbol, trades lie in the order of their entries."""
    last: dict[bytes | None, tuple[int, int]] = {}
    for record in read_topic(bench.kafka, bench.trades):
        i, k = record.value[11:].split(b".")
        place = int(i), int(k)
        assert place > last.get(record.key, (-1, -1)), record
        last[record.key] = place


# What arrives


def test_the_partition_is_the_one_that_java_clients_choose() -> None:
    """The reference values are those of Apache Kafka's own UtilsTest.testMurmur2."""
    assert murmur2_partition(b"21", 1 << 31) == -973932308 & 0x7FFFFFFF
    assert murmur2_partition(b"foobar", 1 << 31) == -790332482 & 0x7FFFFFFF
    assert murmur2_partition(b"a-little-bit-long-string", 1 << 31) == -985981536 & 0x7FFFFFFF


def test_frames_arrive_as_their_exact_bytes_with_key_partition_and_header(bench: Bench) -> None:
    entries = [entry(i, payload=b'{"frame":%d,"\xff\x00"}' % i) for i in range(200)]
    bench.deliver(entries)
    stored = read_topic(bench.kafka, bench.raw)
    assert Counter(r.value for r in stored) == Counter(payloads(entries))
    by_value = {e.frame.payload: e for e in entries}
    for record in stored:
        sent = by_value[record.value]
        assert record.key == (sent.symbol or "").encode()
        assert record.partition == murmur2_partition(record.key, PARTITIONS)
        tag = f"3:{sent.frame.sequence}:{sent.frame.received_ns}:0"
        assert record.headers == {"frame": tag.encode()}


def test_trades_arrive_in_the_wire_format_that_the_registry_explains(
    bench: Bench, registry: AnyRegistry
) -> None:
    schema = json.loads(resources.path("schemas", "trade.avsc").read_text())
    encoder = avro.TradeEncoder("testex")
    trade = Trade("BTCUSDT", 77, "64000.10", "0.00100000", BUY, 1_732_320_000_000_001)
    names = {"BTCUSDT": "BTC/USDT"}
    [encoded] = encoder.encode((trade,), names, STREAM, RECEIVED_NS, 5, 1_732_320_000_100)
    frame = Frame(b"{}", 1, 5, RECEIVED_NS, STREAM)
    bench.deliver([Entry(1, frame, "BTCUSDT", [encoded])])
    [record] = read_topic(bench.kafka, bench.trades)
    assert (record.key, record.headers, record.value[:1]) == (b"BTCUSDT", {}, b"\0")
    number = int.from_bytes(record.value[1:5], "big")
    explained = json.loads(call("GET", f"{registry.url}/schemas/ids/{number}")["schema"])
    assert explained == schema
    subject = f"{bench.trades}-value"
    latest = call("GET", f"{registry.url}/subjects/{subject}/versions/latest")
    assert (latest["id"], latest["version"]) == (number, 1)
    level = call("GET", f"{registry.url}/config/{subject}")
    assert level["compatibilityLevel"] == "BACKWARD"
    read: Any = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), explained, None)
    assert (read["trade_id"], read["quote_volume"]) == ("77", "64.0001000000")


def test_entries_without_messages_are_acknowledged_with_their_predecessors(bench: Bench) -> None:
    empty = Entry(1, Frame(b"heartbeat", 1, 1, RECEIVED_NS, STREAM))
    assert bench.sink.poll(0) is None
    assert bench.sink.write([empty]) == 1
    assert bench.sink.poll(0) == 1
    assert bench.sink.write([entry(1), empty._replace(end=3)]) == 2
    assert bench.sink.poll(0) in (1, 3)
    bench.deliver([empty._replace(end=3)])
    assert bench.sink.wait_s() == 1.0


def test_a_full_queue_is_backpressure_and_doubles_nothing(short_queue: Bench) -> None:
    bench = short_queue
    entries = [entry(i, trades=3) for i in range(500)]
    handed, refusals = 0, 0
    deadline = time.monotonic() + 60
    while bench.sink.poll(0.001) != 500:
        assert time.monotonic() < deadline
        taken = bench.sink.write(entries[handed:])
        refusals += handed + taken < 500
        handed += taken
    bench.sink.close()
    assert refusals > 50
    assert Counter(bench.trade_bodies()) == Counter(bodies(entries))
    assert Counter(bench.raw_values()) == Counter(payloads(entries))
    assert_in_order(bench)


# Opening


def test_without_a_broker_it_says_so_and_opens_once_there_is_one(
    real_bench: Bench, tmp_path: Path
) -> None:
    kafka = real_bench.kafka
    assert isinstance(kafka, Kafka)
    kafka.kill()
    assert not real_bench.sink.open()
    assert f"127.0.0.1:{kafka.port}" in real_bench.sink.trouble
    assert "Connection refused" in real_bench.sink.trouble
    assert real_bench.sink.write([entry(0)]) == 0
    assert real_bench.sink.poll(0) is None
    with pytest.raises(BrokerTrouble, match="Connection refused"):
        probe_broker(real_bench.config)
    kafka.start()
    assert "answers" in probe_broker(real_bench.config)
    real_bench.open().deliver([entry(0)])


def test_without_a_registry_it_says_so_and_opens_once_there_is_one(
    kafka: AnyKafka, topic_prefix: str, tmp_path: Path
) -> None:
    registry = MockRegistry()
    bench = Bench(kafka, registry, topic_prefix, tmp_path)
    bench.create_topics()
    assert not bench.sink.open()
    assert f"schema registry {registry.url}" in bench.sink.trouble
    assert "refused" in bench.sink.trouble
    with pytest.raises(RegistryTrouble, match="refused"):
        probe_registry(bench.config)
    with registry:
        bench.open().deliver([entry(0)])
        bench.sink.close()


def test_an_incompatible_schema_is_refused_and_nothing_is_produced(
    real_bench: Bench, real_registry: Registry
) -> None:
    bench = real_bench
    subject = f"{bench.trades}-value"
    other = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "long"}]}
    versions = f"{real_registry.url}/subjects/{subject}/versions"
    call("POST", versions, {"schema": json.dumps(other)})
    assert not bench.sink.open()
    assert subject in bench.sink.trouble
    assert "incompatible" in bench.sink.trouble
    assert bench.sink.write([entry(0)]) == 0
    assert read_topic(bench.kafka, bench.trades) == read_topic(bench.kafka, bench.raw) == []
    call("DELETE", f"{real_registry.url}/subjects/{subject}")
    bench.open().deliver([entry(0)])


def test_a_stricter_compatibility_is_kept(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    bench = Bench(kafka, registry, topic_prefix, tmp_path)
    bench.create_topics()
    level = f"{registry.url}/config/{bench.trades}-value"
    call("PUT", level, {"compatibility": "FULL_TRANSITIVE"})
    bench.open().sink.close()
    assert call("GET", level)["compatibilityLevel"] == "FULL_TRANSITIVE"


def test_a_topic_that_exists_keeps_its_partitions(real_bench: Bench) -> None:
    real_bench.kafka.create_topics((real_bench.trades,), 7)
    real_bench.open()
    topics = real_bench.kafka.admin().list_topics(timeout=10).topics
    names = (real_bench.raw, real_bench.trades, real_bench.dead, real_bench.coverage)
    assert [len(topics[name].partitions) for name in names] == [PARTITIONS, 7, 1, 1]


# A killed process


def test_a_killed_process_doubles_at_most_what_was_not_acknowledged(real_bench: Bench) -> None:
    bench, window, total = real_bench, 1000, 20_000
    state = bench.folder.parent / "acknowledged"
    state.write_text("0")
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        bench.config.bootstrap_servers,
        bench.config.schema_registry_url,
        bench.config.topic_prefix,
        str(state),
        str(window),
        str(total),
    ]
    kills = 0
    for kill_at in (3000, 9000, 0):
        child = subprocess.Popen(command)
        try:
            if kill_at:
                eventually(lambda: int(state.read_text() or 0) > kill_at, 30, "so many stored")  # noqa: B023
                child.send_signal(signal.SIGKILL)
                kills += 1
            child.wait(60)
        finally:
            child.kill()
            child.wait()
    stored = Counter(bench.trade_bodies())
    assert set(stored) == {b"trade %d.0" % i for i in range(total)}
    assert sum(stored.values()) - total <= kills * window
    assert set(bench.raw_values()) == {b"raw %d" % i for i in range(total)}


def produce_from_state(arguments: Sequence[str]) -> None:
    """The process that is killed: goes on from the acknowledged position, which it keeps in a
    file, and never reads more than the window ahead of it."""
    servers, url, prefix, state_text, window, total = arguments
    state = Path(state_text)
    config = KafkaConfig(servers, url, prefix, PARTITIONS, {})
    sink = KafkaSink(config, "testex", linger_s=0.005, dead_dir=state.parent, log=log.get())
    while not sink.open():
        time.sleep(0.2)
    acknowledged = handed = int(state.read_text())
    while acknowledged < int(total):
        upto = min(handed + 100, acknowledged + int(window), int(total))
        handed += sink.write([entry(i) for i in range(handed, upto)])
        now = sink.poll(0.002)
        if now is not None and now != acknowledged:
            acknowledged = now
            part = state.with_suffix(".part")
            part.write_text(str(now))
            part.rename(state)


if __name__ == "__main__":
    produce_from_state(sys.argv[1:])
