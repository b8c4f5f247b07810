"""The Kafka sink against a real broker and a real registry, with all that can go wrong there."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest
from broker import Kafka, MockRegistry, Registry, eventually
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
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
)

from feedmono import avro, log, resources
from feedmono.config import KafkaConfig
from feedmono.sinks import kafka_dead
from feedmono.sinks.base import DeadLetter, Entry, Frame, SinkFailed
from feedmono.sinks.kafka import KafkaSink
from feedmono.sinks.kafka_client import BrokerTrouble
from feedmono.sinks.kafka_message import CallbackPending, Failure
from feedmono.sinks.kafka_topics import probe_broker
from feedmono.sinks.registry import RegistryTrouble, probe_registry
from feedmono.trade import BUY, STREAM, Trade

__all__ = ["bench", "real_bench"]


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


def test_a_full_queue_is_backpressure_and_doubles_nothing(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    limit = {"queue_buffering_max_messages": "10"}
    bench = Bench(kafka, registry, topic_prefix, tmp_path, **limit)
    bench.create_topics()
    bench.open()
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


# What can never be stored


@pytest.mark.parametrize("lowered", ["before it is opened", "behind its back"])
def test_a_message_too_large_is_a_dead_letter_and_harms_no_other(
    real_bench: Bench, lowered: str
) -> None:
    """Behind its back, whole batches are above the limit: 2,000 of 2,000 would fail."""
    bench = real_bench
    bench.create_topics()
    if lowered == "before it is opened":
        bench.set_limit(bench.raw, 20_000)
        bench.open()
    else:
        bench.open()
        bench.set_limit(bench.raw, 20_000)
    large = os.urandom(30_000)
    entries = [entry(i, payload=os.urandom(100) + b"%d" % i) for i in range(2001)]
    entries[1000] = entry(1000, payload=large)
    bench.deliver(entries)
    good = [p for p in payloads(entries) if p != large]
    assert Counter(bench.raw_values()) == Counter(good)
    assert Counter(bench.trade_bodies()) == Counter(bodies(entries))
    [letter] = read_topic(bench.kafka, bench.dead)
    assert large.startswith(letter.value)
    assert len(letter.value) > 10_000
    assert letter.key == (entries[1000].symbol or "").encode()
    assert letter.headers["stage"] == b"sink"
    assert b"MSG_SIZE_TOO_LARGE" in letter.headers["reason"]
    assert letter.headers["frame"] == entries[1000].frame.tag.encode()
    assert bench.sink.stats.dead_letters == 1
    assert bench.sink.trouble == ""


@pytest.mark.parametrize("lowered", ["before it is opened", "behind its back"])
def test_a_trade_that_is_refused_is_told_before_its_entry_is_acknowledged(
    real_bench: Bench, lowered: str
) -> None:
    bench = real_bench
    bench.create_topics()
    if lowered == "before it is opened":
        bench.set_limit(bench.trades, 2_000)
        bench.open()
    else:
        bench.open()
        bench.set_limit(bench.trades, 2_000)
    entries = [entry(i, trades=3) for i in range(500)]
    large = os.urandom(3_000)
    for i, k in ((100, 0), (100, 2), (300, 1)):
        trades = list(entries[i].trades)
        trades[k] = trades[k]._replace(body=large + b"%d.%d" % (i, k))
        entries[i] = entries[i]._replace(trades=trades)
    refused = {(101, 0), (101, 2), (301, 1)}

    def look(acknowledged: int) -> None:
        told = set(bench.sink.refused)
        assert told <= refused
        assert told >= {place for place in refused if place[0] <= acknowledged}

    bench.deliver(entries, meanwhile=look)
    assert sorted(bench.sink.refused) == sorted(refused)
    good = [body for body in bodies(entries) if not body.startswith(large)]
    assert Counter(bench.trade_bodies()) == Counter(good)
    assert Counter(bench.raw_values()) == Counter(payloads(entries))
    assert len(read_topic(bench.kafka, bench.dead)) == 3


def test_a_raw_message_that_is_refused_is_none_of_the_refused_trades(real_bench: Bench) -> None:
    bench = real_bench
    bench.create_topics()
    bench.set_limit(bench.raw, 20_000)
    bench.open()
    bench.deliver([entry(0), entry(1, payload=os.urandom(30_000)), entry(2)])
    assert len(read_topic(bench.kafka, bench.dead)) == 1
    assert bench.sink.refused == []


def test_a_cut_dead_letter_leaves_a_whole_copy(real_bench: Bench) -> None:
    bench = real_bench
    bench.open()
    large = os.urandom(2_000_000)
    bench.deliver([entry(0), entry(1, payload=large), entry(2)])
    [letter] = read_topic(bench.kafka, bench.dead)
    assert 900_000 < len(letter.value) < 1_000_000
    assert large.startswith(letter.value)
    [copy] = bench.folder.iterdir()
    assert copy.read_bytes() == large
    assert Counter(bench.trade_bodies()) == {b"trade 0.0": 1, b"trade 1.0": 1, b"trade 2.0": 1}


def test_a_dead_letter_that_is_refused_itself_is_cut_until_it_fits(real_bench: Bench) -> None:
    bench = real_bench
    bench.open()
    bench.set_limit(bench.dead, 5_000)
    payload = os.urandom(600_000)
    letter = DeadLetter("decode", "not JSON")
    unreadable = Entry(1, Frame(payload, 1, 1, RECEIVED_NS, STREAM), dead=letter)
    bench.deliver([unreadable, entry(1)])
    [stored] = read_topic(bench.kafka, bench.dead)
    assert payload.startswith(stored.value)
    assert 1_000 < len(stored.value) < 5_000
    assert stored.headers == {
        "reason": b"not JSON",
        "stage": b"decode",
        "frame": b"1:1:%d:0" % RECEIVED_NS,
    }
    [copy] = bench.folder.iterdir()
    assert copy.read_bytes() == payload


def test_an_invalid_record_is_found_alone_and_its_batch_mates_arrive(real_bench: Bench) -> None:
    """A compacted topic refuses a record without a key, and the whole batch around it. Here that
    is the dead letters' own topic: of the letter without a symbol only the copy is left."""
    bench = real_bench
    bench.kafka.create_topics((bench.dead,), 1, {"cleanup.policy": "compact"})
    bench.open()
    entries = [
        Entry(
            i + 1,
            Frame(b"garbage %d" % i, 1, i, RECEIVED_NS, STREAM),
            dead=DeadLetter("decode", "not JSON", None if i == 50 else "BTCUSDT"),
        )
        for i in range(100)
    ]
    bench.deliver(entries)
    stored = [record.value for record in read_topic(bench.kafka, bench.dead)]
    assert stored == [e.frame.payload for i, e in enumerate(entries) if i != 50]
    [copy] = bench.folder.iterdir()
    assert copy.read_bytes() == b"garbage 50"


def test_copies_are_bounded_in_bytes_and_number(tmp_path: Path) -> None:
    copies = kafka_dead.Copies(tmp_path, "testex", log.get(), limit_bytes=1000, limit=3)
    assert copies.keep(1, b"a" * 600, "too large")
    assert copies.keep(1, b"a" * 600, "again, as after a restart")
    assert not copies.keep(2, b"b" * 600, "too large")
    assert copies.keep(3, b"c", "too large")
    assert copies.keep(4, b"d", "too large")
    assert not copies.keep(5, b"e", "too large")
    assert len(list(tmp_path.iterdir())) == 3


# What an operator can heal


def test_a_topic_deleted_under_load_is_made_again_and_gets_what_waited(real_bench: Bench) -> None:
    bench = real_bench.open()
    entries = [entry(i) for i in range(30_000)]
    safe_from: list[int] = []

    def delete(acknowledged: int) -> None:
        if acknowledged > 3000 and not safe_from:
            for future in admin.delete_topics([bench.trades]).values():
                future.result(10)
            bench.wait_gone(bench.trades)
            safe_from.append(bench.handed)

    admin = bench.kafka.admin()
    bench.deliver(entries, meanwhile=delete, window=2000)
    assert safe_from
    assert 3000 < safe_from[0] < 10_000
    stored = Counter(bench.trade_bodies())
    # What the broker took before the topic was gone may be gone with it; nothing else is.
    assert [stored[e.trades[0].body] for e in entries[safe_from[0] :]] == [1] * (
        len(entries) - safe_from[0]
    )
    assert set(stored.values()) == {1}
    assert Counter(bench.raw_values()) == Counter(payloads(entries))
    assert len(admin.list_topics(timeout=10).topics[bench.trades].partitions) == PARTITIONS


@pytest.mark.parametrize("outage", ["stopped for a while", "killed and started again"])
def test_an_outage_of_the_broker_loses_and_doubles_nothing(real_bench: Bench, outage: str) -> None:
    bench = real_bench.open()
    kafka = bench.kafka
    assert isinstance(kafka, Kafka)
    entries = [entry(i) for i in range(30_000)]
    healers: list[threading.Timer] = []
    troubles: set[str] = set()

    def break_it(acknowledged: int) -> None:
        troubles.add(bench.sink.trouble)
        if acknowledged > 3000 and not healers:
            kafka.stop_signal()
            healer = threading.Timer(6.0, kafka.continue_signal)
            healer.start()
            healers.append(healer)

    def kill_it(acknowledged: int) -> None:
        if acknowledged > 3000 and not healers:
            healers.append(threading.Timer(0, lambda: None))
            kafka.restart()

    stopped = outage == "stopped for a while"
    bench.deliver(entries, meanwhile=break_it if stopped else kill_it)
    assert healers
    assert Counter(bench.trade_bodies()) == Counter(bodies(entries))
    assert Counter(bench.raw_values()) == Counter(payloads(entries))
    assert_in_order(bench)
    if stopped:
        assert any("acknowledges nothing" in trouble for trouble in troubles)
    assert bench.sink.trouble == ""


def test_a_topic_without_permission_waits_says_so_and_keeps_the_order(real_bench: Bench) -> None:
    bench = real_bench.open()
    place = (ResourceType.TOPIC, bench.trades, ResourcePatternType.LITERAL)
    deny = (*place, "User:*", "*", AclOperation.WRITE, AclPermissionType.DENY)
    admin = bench.kafka.admin()
    for future in admin.create_acls([AclBinding(*deny)]).values():
        future.result(10)
    healed: list[str] = []

    def heal(_: int) -> None:
        if "TOPIC_AUTHORIZATION_FAILED" in bench.sink.trouble and not healed:
            healed.append(bench.sink.trouble)
            assert bench.sink.write([entry(1)]) == 0
            for future in admin.delete_acls([AclBindingFilter(*deny)]).values():
                future.result(10)

    entries = [entry(i, trades=2) for i in range(5000)]
    bench.deliver(entries, meanwhile=heal)
    assert bench.trades in healed[0]
    assert Counter(bench.trade_bodies()) == Counter(bodies(entries))
    assert Counter(bench.raw_values()) == Counter(payloads(entries))
    assert_in_order(bench)
    assert bench.sink.trouble == ""
    assert bench.sink.stats.errors > 0


def test_a_fatal_error_ends_the_sink(bench: Bench) -> None:
    failed = KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    failures = bench.sink._resender.failures
    failures.append(Failure(failed, CallbackPending(failures), None))  # type: ignore[arg-type]
    with pytest.raises(SinkFailed, match="OUT_OF_ORDER"):
        bench.sink.poll(0)


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
