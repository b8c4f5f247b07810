"""Coverage in both sinks: the newest of each symbol arrives, and no trade ever waits for it."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import fastavro
import pytest
from broker import MockRegistry, eventually
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from files_rig import EXCHANGE, Rig, coverage, entries, rig
from kafka_rig import (
    AnyKafka,
    AnyRegistry,
    Bench,
    bench,
    bodies,
    call,
    entry,
    read_topic,
    real_bench,
)

from feedmono.avro import load_schema
from feedmono.sinks.base import Coverage, Hole
from feedmono.sinks.container import ContainerWriter
from feedmono.sinks.coverage import CoverageEncoder
from feedmono.sinks.files_source import read_records

__all__ = ["bench", "real_bench", "rig"]

HOLES = [Hole(n, n + 1, "disconnect", 1_723_161_255_342_000) for n in range(0, 500, 2)]
FULL = Coverage("BTCUSDT", 2, 5, 900, HOLES, 500, 7, 9, 1_732_320_000_123_456)


def test_a_record_holds_everything_and_the_first_hundred_holes() -> None:
    body = CoverageEncoder("binance").encode(FULL)
    read: Any = fastavro.schemaless_reader(io.BytesIO(body), load_schema("coverage"), None)
    assert (read["schema_version"], read["exchange"], read["symbol"]) == (
        "1.0.0",
        "binance",
        "BTCUSDT",
    )
    assert [read[name] for name in ("epoch", "from_id", "to_id")] == [2, 5, 900]
    assert [read[f"{kind}_trades"] for kind in ("open", "absent", "beyond")] == [500, 7, 9]
    assert round(read["as_of"].timestamp() * 1e6) == FULL.as_of_us
    assert len(read["open_holes"]) == 100
    first = read["open_holes"][0]
    assert (first["first_id"], first["last_id"], first["cause"]) == (0, 1, "disconnect")
    assert round(first["since"].timestamp() * 1e6) == HOLES[0].since_us


# In files


def covered(rig: Rig) -> list[tuple[str, int]]:
    found = read_records(rig.folder, EXCHANGE, "coverage")
    return [(record["symbol"], record["to_id"]) for record in found]


def test_coverage_goes_with_the_next_entries_into_the_same_segment_and_the_mark(rig: Rig) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.cover([coverage(8), coverage(3, "ETHUSDT")])
    sink.cover([coverage(9)])
    rig.clock.now_s += 100
    assert sink.poll(0) == 10
    assert covered(rig) == []
    rig.store(sink, entries(10, 20))
    assert covered(rig) == [("BTCUSDT", 9), ("ETHUSDT", 3)]
    assert sorted(rig.mark or ()) == rig.names("*.part")
    assert len(rig.names("*.part")) == 3
    sink.close()
    stems = {name.partition("-")[2] for name in rig.names()}
    assert len(stems) == 1


def test_coverage_alone_begins_no_segment(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=100.0)
    sink.cover([coverage(1)])
    sink.flush()
    assert sink.poll(0) is None
    assert sink.wait_s() == 1.0
    sink.close()
    assert rig.names() == []


def test_coverage_keeps_no_segment_from_rolling_and_goes_into_the_next(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=100.0)
    rig.store(sink, entries(0, 10))
    sink.cover([coverage(9)])
    rig.clock.now_s += 100
    sink.poll(0)
    assert rig.finished_ids() == list(range(10))
    assert rig.names("*.part") == []
    assert covered(rig) == []
    rig.store(sink, entries(10, 20))
    assert covered(rig) == [("BTCUSDT", 9)]
    sink.close()


def test_a_close_stores_the_last_coverage(rig: Rig) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.cover([coverage(9)])
    sink.close()
    assert covered(rig) == [("BTCUSDT", 9)]
    assert rig.names("*.part") == []


@pytest.mark.parametrize("call", ["append", "sync"])
def test_a_last_coverage_that_can_not_be_stored_does_no_harm(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.cover([coverage(8)])
    rig.store(sink, entries(10, 20))
    sink.cover([coverage(19)])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ContainerWriter, call, full)
        sink.close()
    assert rig.finished_ids() == list(range(20))
    assert rig.names("*.part") == rig.names("coverage-*.part")
    rig.opened().close()
    assert covered(rig) == [("BTCUSDT", 8)]
    assert rig.names("*.part") == []


def test_coverage_does_not_pile_up_while_the_disk_is_full(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.write(entries(10, 20))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for number in range(100):
            sink.cover([coverage(number)])
            rig.clock.now_s += 10
            assert sink.poll(0) == 10
    rig.clock.now_s += 10
    assert rig.commit(sink) == 20
    sink.close()
    assert covered(rig) == [("BTCUSDT", 0), ("BTCUSDT", 99)]


# In Kafka


def stored(bench: Bench) -> list[tuple[str, int]]:
    """Key and last id of each record of the topic, as an independent reader finds them."""
    schema = load_schema("coverage")
    found = []
    for record in read_topic(bench.kafka, bench.coverage):
        assert (record.value[:1], record.headers) == (b"\0", {})
        read: Any = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)
        assert record.key is not None
        assert record.key.decode() == read["symbol"]
        found.append((read["symbol"], read["to_id"]))
    return found


def polled(bench: Bench, *wanted: tuple[str, int]) -> bool:
    bench.sink.poll(0.01)
    found = stored(bench)
    return all(item in found for item in wanted)


def test_the_newest_of_each_symbol_arrives_in_the_wire_format(
    bench: Bench, registry: AnyRegistry
) -> None:
    bench.sink.cover([coverage(n, s) for n in range(50) for s in ("BTCUSDT", "ETHUSDT")])
    bench.sink.cover([coverage(99)])
    eventually(lambda: polled(bench, ("BTCUSDT", 99), ("ETHUSDT", 49)), 20, "both")
    found = stored(bench)
    assert len(found) <= 4
    assert dict(found) == {"BTCUSDT": 99, "ETHUSDT": 49}
    number = int.from_bytes(read_topic(bench.kafka, bench.coverage)[0].value[1:5], "big")
    explained = json.loads(call("GET", f"{registry.url}/schemas/ids/{number}")["schema"])
    assert explained == load_schema("coverage")
    subject = f"{bench.coverage}-value"
    assert call("GET", f"{registry.url}/subjects/{subject}/versions/latest")["id"] == number
    assert bench.sink.mark() == {}
    bench.sink.settle()


def test_a_close_waits_for_what_was_taken_just_before(bench: Bench) -> None:
    bench.deliver([entry(0)])
    for number in range(100):
        bench.sink.cover([coverage(number)])
    bench.sink.close()
    assert stored(bench)[-1] == ("BTCUSDT", 99)


def test_the_topic_is_made_compacted_and_with_one_partition(real_bench: Bench) -> None:
    real_bench.open()
    kafka = real_bench.kafka
    admin = kafka.admin()
    topics = admin.list_topics(timeout=10).topics
    assert len(topics[real_bench.coverage].partitions) == 1
    asked = ConfigResource(ResourceType.TOPIC, real_bench.coverage)
    answer = admin.describe_configs([asked])[asked].result(10)
    assert answer["cleanup.policy"].value == "compact"


def test_a_refusal_by_the_registry_is_a_trouble_and_nothing_is_produced(
    kafka: AnyKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with MockRegistry() as registry:
        bench = Bench(kafka, registry, topic_prefix, tmp_path)
        bench.create_topics()
        trade = json.dumps(load_schema("trade"), separators=(",", ":"))
        call("POST", f"{registry.url}/subjects/{bench.trades}-value/versions", {"schema": trade})
        call("PUT", f"{registry.url}/refuse", {"refuse": True})
        assert not bench.sink.open()
        assert f"{bench.coverage}-value" in bench.sink.trouble
        assert "incompatible" in bench.sink.trouble
        assert bench.sink.write([entry(0)]) == 0
        call("PUT", f"{registry.url}/refuse", {"refuse": False})
        bench.open().deliver([entry(0)])
        bench.sink.close()


def test_without_permission_the_trades_flow_and_the_coverage_follows_when_it_may(
    real_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedmono.sinks.kafka_coverage.RETRY_S", 0.1)
    bench = real_bench.open()
    place = (ResourceType.TOPIC, bench.coverage, ResourcePatternType.LITERAL)
    deny = (*place, "User:*", "*", AclOperation.WRITE, AclPermissionType.DENY)
    admin = bench.kafka.admin()
    for future in admin.create_acls([AclBinding(*deny)]).values():
        future.result(10)
    batch = [entry(i) for i in range(5000)]

    def cover(acknowledged: int) -> None:
        bench.sink.cover([coverage(acknowledged), coverage(acknowledged, "ETHUSDT")])

    bench.deliver(batch, meanwhile=cover)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        bench.sink.poll(0.05)
        assert bench.sink.trouble == ""
    assert bench.sink.stats.errors == 1
    assert stored(bench) == []
    assert sorted(bench.trade_bodies()) == sorted(bodies(batch))
    for future in admin.delete_acls([AclBindingFilter(*deny)]).values():
        future.result(10)
    cover(4999)
    eventually(lambda: polled(bench, ("BTCUSDT", 4999), ("ETHUSDT", 4999)), 30, "both")
    assert bench.sink.stats.errors == 1


def test_a_deleted_topic_is_made_again(real_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedmono.sinks.kafka_coverage.RETRY_S", 0.1)
    bench = real_bench.open()
    bench.sink.cover([coverage(1)])
    eventually(lambda: polled(bench, ("BTCUSDT", 1)), 20, "the first")
    admin = bench.kafka.admin()
    for future in admin.delete_topics([bench.coverage]).values():
        future.result(10)
    bench.wait_gone(bench.coverage)
    bench.sink.cover([coverage(2)])

    def there() -> bool:
        bench.sink.poll(0.01)
        return bench.coverage in admin.list_topics(timeout=10).topics

    eventually(there, 40, "the topic is there again")
    eventually(lambda: polled(bench, ("BTCUSDT", 2)), 40, "the second")


def test_what_is_too_large_is_given_up_and_harms_no_other(real_bench: Bench) -> None:
    bench = real_bench
    bench.create_topics()
    bench.set_limit(bench.coverage, 600)
    bench.open()
    bench.sink.cover([FULL, coverage(7, "ETHUSDT")])
    eventually(lambda: polled(bench, ("ETHUSDT", 7)), 20, "the small one")
    eventually(lambda: polled(bench) and bench.sink.stats.errors == 1, 20, "the large one")
    bench.deliver([entry(i) for i in range(100)])
    assert stored(bench) == [("ETHUSDT", 7)]


def test_a_producer_that_fails_altogether_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedmono.sinks.kafka_coverage.RETRY_S", 0.05)

    class Broken:
        def poll(self, _: float) -> int:
            raise SystemError("returned a result with an exception set")

    bench.sink._coverage._producer = Broken()  # type: ignore[assignment]
    bench.sink.cover([coverage(5)])
    eventually(lambda: polled(bench, ("BTCUSDT", 5)), 20, "the coverage")
    assert bench.sink.stats.errors == 1


def test_while_the_broker_is_away_nothing_blocks_and_the_newest_follows(
    real_bench: Bench,
) -> None:
    bench = real_bench.open()
    bench.sink.cover([coverage(0)])
    eventually(lambda: polled(bench, ("BTCUSDT", 0)), 20, "the first")
    bench.kafka.stop_signal()
    try:
        started = time.monotonic()
        for number in range(1000):
            bench.sink.cover([coverage(number), coverage(number, "ETHUSDT")])
            bench.sink.poll(0)
        assert time.monotonic() - started < 20
    finally:
        bench.kafka.continue_signal()
    eventually(lambda: polled(bench, ("BTCUSDT", 999), ("ETHUSDT", 999)), 30, "both")
    assert len(stored(bench)) <= 5
    bench.kafka.stop_signal()
    try:
        bench.sink.cover([coverage(1000)])
        started = time.monotonic()
        bench.sink.close()
        assert time.monotonic() - started < 20
    finally:
        bench.kafka.continue_signal()


def test_a_kind_of_failure_is_counted_once_until_one_arrives(bench: Bench) -> None:
    topic = bench.sink._coverage
    failed = KafkaError(KafkaError._MSG_TIMED_OUT)
    for number in range(100):
        topic._reported(coverage(number), failed, None)  # type: ignore[arg-type]
    assert bench.sink.stats.errors == 1
    topic._reported(coverage(5), None, None)  # type: ignore[arg-type]
    topic._reported(coverage(6), failed, None)  # type: ignore[arg-type]
    assert bench.sink.stats.errors == 2
