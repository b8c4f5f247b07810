"""What an operator can heal, in batches and message by message: topics that are gone or denied, a
broker that is away. It is told, and what waits is stored once, in its order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from broker import Kafka, eventually
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from frame_twins import NEEDS_NATIVE
from kafka_batch_rig import (
    EITHER_WAY,
    Feed,
    Way,
    assert_same,
    assert_stored,
    deliver,
    feed,
    raw_messages,
    trade_messages,
    wire_prefix,
)
from kafka_rig import PARTITIONS, Bench, bench, read_topic, real_bench

from feedmono.config import KafkaConfig
from feedmono.sinks.base import SinkFailed
from feedmono.sinks.kafka_message import CallbackPending, Failure

__all__ = ["bench", "feed", "real_bench"]


def delete(bench: Bench, topic: str) -> None:
    # Without a name the client would go before it is answered.
    admin = bench.kafka.admin()
    for future in admin.delete_topics([topic]).values():
        future.result(10)
    bench.wait_gone(topic)


def deny(bench: Bench, topic: str, operation: AclOperation) -> Callable[[], None]:
    """Denies it to all, until the function is called that this gives."""
    place = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL)
    denied = (*place, "User:*", "*", operation, AclPermissionType.DENY)
    admin = bench.kafka.admin()
    for future in admin.create_acls([AclBinding(*denied)]).values():
        future.result(10)

    def heal() -> None:
        for future in admin.delete_acls([AclBindingFilter(*denied)]).values():
            future.result(10)

    return heal


def once_in_trouble(bench: Bench, trouble: str, heal: Callable[[], None]) -> Callable[[int], None]:
    """For `deliver`: heals what is wrong once the sink has told of it."""
    healed: list[str] = []

    def look(_: int) -> None:
        if trouble in bench.sink.trouble and not healed:
            healed.append(bench.sink.trouble)
            heal()

    return look


@EITHER_WAY
def test_a_topic_deleted_under_load_is_made_again_and_gets_what_waited(
    real_bench: Bench, feed: Feed, way: Way
) -> None:
    bench = real_bench.open()
    feed.add_many(20_000)
    entries = feed.entries()
    safe_from: list[int] = []

    def delete_it(acknowledged: int) -> None:
        if acknowledged > entries[2000].end and not safe_from:
            delete(bench, bench.trades)
            safe_from.append(bench.handed)

    deliver(bench, way(feed), meanwhile=delete_it, window_bytes=1 << 19)
    assert entries[2000].end < safe_from[0] < entries[10_000].end
    stored = read_topic(bench.kafka, bench.trades)
    assert len({message.value for message in stored}) == len(stored)
    # What the broker took before the topic was gone may be gone with it; nothing else is.
    prefix = wire_prefix(bench)
    safe = trade_messages((e for e in entries if e.end > safe_from[0]), prefix)
    assert {m.value for m in stored} >= {m.value for m in safe}
    assert {m.value for m in stored} <= {m.value for m in trade_messages(entries, prefix)}
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries))
    topics = bench.kafka.admin().list_topics(timeout=10).topics
    assert len(topics[bench.trades].partitions) == PARTITIONS


@EITHER_WAY
def test_a_topic_without_permission_waits_says_so_and_keeps_the_order(
    real_bench: Bench, feed: Feed, way: Way
) -> None:
    bench = real_bench.open()
    heal = deny(bench, bench.trades, AclOperation.WRITE)
    feed.add_many(4000, trades=2)
    entries = feed.entries()
    lists = list(way(feed))
    more = lists.pop()

    def heal_and_write() -> None:
        assert bench.trades in bench.sink.trouble
        assert bench.sink.write(more) == 0
        heal()

    look = once_in_trouble(bench, "TOPIC_AUTHORIZATION_FAILED", heal_and_write)
    deliver(bench, lists, meanwhile=look)
    deliver(bench, [more])
    assert_stored(bench, entries)
    assert bench.sink.trouble == ""
    assert bench.sink.stats.failures["message"] > 0


@EITHER_WAY
@pytest.mark.parametrize("outage", ["stopped for a while", "killed and started again"])
def test_an_outage_of_the_broker_loses_and_doubles_nothing(
    real_bench: Bench, feed: Feed, way: Way, outage: str
) -> None:
    bench = real_bench.open()
    kafka = bench.kafka
    assert isinstance(kafka, Kafka)
    feed.add_many(20_000)
    entries = feed.entries()
    broken: list[int] = []
    healed: list[str] = []

    def heal() -> None:
        healed.append(bench.sink.trouble)
        kafka.continue_signal()

    look = once_in_trouble(bench, "acknowledges nothing", heal)

    def break_it(acknowledged: int) -> None:
        if acknowledged > entries[3000].end and not broken:
            broken.append(acknowledged)
            if outage == "stopped for a while":
                kafka.stop_signal()
            else:
                kafka.restart()
        look(acknowledged)

    # The window leaves most of it to be handed over when the broker goes.
    deliver(bench, way(feed), meanwhile=break_it, window_bytes=1 << 20)
    assert broken
    assert healed or outage != "stopped for a while", "it said so"
    assert_stored(bench, entries)
    assert bench.sink.trouble == ""


def client_that_asks_often(bench: Bench) -> Bench:
    """Open, with a client that soon knows what became of a topic."""
    properties = {
        "topic.metadata.refresh.interval.ms": "100",
        "topic.metadata.propagation.max.ms": "1",
    }
    config = bench.config
    bench.config = KafkaConfig(
        config.bootstrap_servers,
        config.schema_registry_url,
        config.topic_prefix,
        config.partitions,
        properties,
    )
    bench.sink = bench.new_sink()
    return bench.open()


def wait_refused(bench: Bench, topic: str) -> None:
    """Waits until the sink's client itself knows that the topic takes nothing."""
    producer = bench.sink._producer
    assert producer is not None

    def refuses() -> bool:
        return producer.list_topics(topic, timeout=10).topics[topic].error is not None

    eventually(refuses, 20, f"{topic} is refused")


@NEEDS_NATIVE
@pytest.mark.parametrize("kind", ["raw", "trades"])
def test_a_topic_that_is_known_to_be_gone_refuses_at_once_and_doubles_nothing(
    real_bench: Bench, feed: Feed, kind: str
) -> None:
    """librdkafka tells of such a message by an acknowledgement and by an error of the call."""
    bench = client_that_asks_often(real_bench)
    topic = bench.raw if kind == "raw" else bench.trades
    feed.add_many(1000, trades=2)
    entries, batches = feed.entries(), list(feed.batches())
    deliver(bench, batches[:1])
    delete(bench, topic)
    wait_refused(bench, topic)
    deliver(bench, batches[1:])
    kept, made_anew = entries, entries[len(batches[0]) :]
    prefix = wire_prefix(bench)
    raw, trades = (made_anew, kept) if kind == "raw" else (kept, made_anew)
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(raw), ordered=False)
    assert_same(read_topic(bench.kafka, bench.trades), trade_messages(trades, prefix), False)


@NEEDS_NATIVE
@pytest.mark.parametrize("kind", ["raw", "trades"])
def test_a_topic_that_may_not_be_looked_at_refuses_at_once_and_doubles_nothing(
    real_bench: Bench, feed: Feed, kind: str
) -> None:
    bench = client_that_asks_often(real_bench)
    topic = bench.raw if kind == "raw" else bench.trades
    feed.add_many(1000, trades=2)
    entries, batches = feed.entries(), list(feed.batches())
    deliver(bench, batches[:1])
    heal = deny(bench, topic, AclOperation.DESCRIBE)
    wait_refused(bench, topic)
    deliver(bench, batches[1:], meanwhile=once_in_trouble(bench, "TOPIC_AUTHORIZATION", heal))
    assert_stored(bench, entries, ordered=False)


def test_a_fatal_error_ends_the_sink(bench: Bench) -> None:
    failed = KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    failures = bench.sink._resender.failures
    failures.append(Failure(failed, CallbackPending(failures), None))  # type: ignore[arg-type]
    with pytest.raises(SinkFailed, match="OUT_OF_ORDER"):
        bench.sink.poll(0)
