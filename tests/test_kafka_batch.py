"""Batches through the Kafka sink, which hands them over without a step in Python for each message:
the same is stored as of their entries one by one, whatever goes wrong."""

from __future__ import annotations

import gc
import os
import random
import string
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from batch_rig import (
    NAMES,
    SYMBOLS,
    Feed,
    assert_same,
    assert_stored,
    by_key,
    deliver,
    offer,
    raw_messages,
    trade_messages,
    wire_prefix,
)
from broker import Kafka, eventually
from confluent_kafka import cimpl
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
    AnyKafka,
    AnyRegistry,
    Bench,
    bench,
    read_topic,
    real_bench,
)

from feedmono import log, native
from feedmono.config import KafkaConfig
from feedmono.sinks import kafka_batch
from feedmono.sinks.base import SinkFailed
from feedmono.sinks.kafka import KafkaSink
from feedmono.sinks.kafka_batch import BatchPending, HandOver

__all__ = ["bench", "real_bench"]

pytestmark = pytest.mark.skipif(native.trades is None, reason="batches are made in C only")

Acl = tuple[ResourceType, str, ResourcePatternType, str, str, AclOperation, AclPermissionType]


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    yield made
    made.close()


def letters(count: int) -> str:
    """A text that no compression makes smaller by much."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=count))


def add_all_kinds(feed: Feed) -> None:
    """Frames with one trade and with several, of one symbol and of several, padded and not."""
    for i in range(600):
        symbol = SYMBOLS[i % len(SYMBOLS)]
        feed.add(*[symbol] * (1, 1, 3, 7)[i % 4], padding=letters((0, 0, 5, 900, 20_000)[i % 5]))
    feed.add(*SYMBOLS)
    feed.add(*[SYMBOLS[3]] * 100, padding=letters(1))


# What a batch is


def test_a_batch_is_the_list_of_the_entries_that_python_makes(feed: Feed) -> None:
    add_all_kinds(feed)
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


def test_the_parts_of_a_batch_hold_what_it_held(feed: Feed) -> None:
    add_all_kinds(feed)
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


# What arrives


def test_batches_arrive_as_exact_bytes_with_key_partition_and_header(
    bench: Bench, feed: Feed
) -> None:
    add_all_kinds(feed)
    entries = feed.entries()
    deliver(bench, feed.batches())
    assert_stored(bench, entries)
    assert bench.sink.trouble == ""
    assert bench.sink.stats.errors == 0


def test_the_topics_hold_what_the_same_entries_give_one_by_one(
    bench: Bench, feed: Feed, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    singly = Bench(bench.kafka, registry, f"{topic_prefix}2", tmp_path)
    singly.create_topics()
    singly.open()
    add_all_kinds(feed)
    singly.deliver(feed.entries())
    singly.sink.close()
    deliver(bench, feed.batches())
    stored = by_key(read_topic(bench.kafka, bench.raw))
    assert stored == by_key(read_topic(singly.kafka, singly.raw))
    prefix = wire_prefix(bench)
    others = [
        m._replace(value=prefix + m.value[5:]) for m in read_topic(bench.kafka, singly.trades)
    ]
    assert by_key(read_topic(bench.kafka, bench.trades)) == by_key(others)


def test_what_is_told_of_when_it_was_stored_is_when_that_was(bench: Bench, feed: Feed) -> None:
    feed.add_many(500)
    handed_ns = time.time_ns()
    assert offer(bench, deque(feed.batches())) == 0
    pendings = list(bench.sink._pendings)
    assert all(isinstance(pending, BatchPending) for pending in pendings)
    sent = [pending for pending in pendings if isinstance(pending, BatchPending)]
    # Without a look of the sink's, which would only know that it was before now.
    eventually(lambda: all(one.stored_ns for one in sent), 20, "all of it is stored")
    stored_ns = time.time_ns()
    assert [one.left for one in sent] == [0, 0]
    assert bench.sink.poll(0) == bench.handed
    told = list(bench.sink.stored)
    assert [end for end, _ in told] == [one.end for one in sent]
    assert told[-1][0] == bench.handed
    assert all(handed_ns <= ns <= stored_ns for _, ns in told)


def test_a_full_queue_cuts_records_in_their_middle_and_doubles_nothing(
    kafka: AnyKafka,
    registry: AnyRegistry,
    topic_prefix: str,
    feed: Feed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = {"queue_buffering_max_messages": "10"}
    bench = Bench(kafka, registry, topic_prefix, tmp_path, **limit)
    bench.create_topics()
    bench.open()
    feed.add_many(500, trades=3)
    entries = feed.entries()
    told = watch_writes(monkeypatch)
    splits = deliver(bench, feed.batches(50))
    bench.sink.close()
    assert splits > 20
    assert told[0] == (2, 2), "two records, and of the third the raw message and a trade"
    assert_stored(bench, entries)


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


def test_messages_under_way_hold_their_bytes_when_the_batch_is_gone(
    real_bench: Bench, feed: Feed
) -> None:
    bench = real_bench.open()
    assert isinstance(bench.kafka, Kafka)
    feed.add_many(1000, trades=2)
    entries = feed.entries()
    hand_over, producer = bench.sink._hand_over, bench.sink._producer
    assert hand_over is not None
    assert producer is not None
    bench.kafka.stop_signal()
    for batch in feed.batches():
        assert hand_over.write(batch, 0)[:2] == (len(batch), 0)
    del batch
    gc.collect()
    # What was freed is written over by this.
    junk = [os.urandom(1 << 16) for _ in range(200)]
    bench.kafka.continue_signal()
    eventually(lambda: producer.flush(0.1) == 0, 30, "all is sent")
    del junk
    assert_stored(bench, entries)


def test_no_memory_is_kept_of_what_was_stored(bench: Bench, feed: Feed) -> None:
    def deliver_some(times: int) -> None:
        for _ in range(times):
            padding = letters(1000) * 4
            for i in range(240):
                feed.add(SYMBOLS[i % 4], padding=padding)
            deliver(bench, feed.batches())
            feed.forget()
            bench.sink.stored.clear()

    def own_bytes() -> int:
        memory = psutil.Process().memory_info()
        # The ring is a file.
        return memory.rss - memory.shared

    deliver_some(20)
    before = own_bytes()
    deliver_some(60)
    assert own_bytes() - before < 20 << 20, "of 60 MiB that went through"


def test_sinks_of_two_exchanges_do_not_mix_what_they_hand_over(
    bench: Bench, feed: Feed, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    second = Bench(bench.kafka, registry, f"{topic_prefix}2", tmp_path)
    second.create_topics()
    folder = tmp_path / "second"
    folder.mkdir()
    other = Feed(folder)
    feed.add_many(1000)
    other.add_many(600, trades=2)
    batches, others = deque(feed.batches()), deque(other.batches())
    deliver(bench, [batches.popleft(), batches.popleft()])
    second.open()
    deliver(second, [others.popleft()])
    deliver(bench, [batches.popleft()])
    deliver(second, [others.popleft()])
    deliver(bench, batches)
    bench.sink.close()
    deliver(second, others)
    second.sink.close()
    assert_stored(bench, feed.entries())
    assert_stored(second, other.entries())
    other.close()


# What can never be stored


@pytest.mark.parametrize("lowered", ["before it is opened", "behind its back"])
def test_a_frame_too_large_is_a_dead_letter_and_harms_no_other(
    real_bench: Bench, feed: Feed, lowered: str
) -> None:
    """Behind its back, whole batches of the broker's are above the limit."""
    bench = real_bench
    bench.create_topics()
    if lowered == "before it is opened":
        bench.set_limit(bench.raw, 20_000)
        bench.open()
    else:
        bench.open()
        bench.set_limit(bench.raw, 20_000)
    for i in range(2001):
        large = i == 1001
        feed.add(SYMBOLS[i % 4], padding=letters(30_000 if large else 100))
    entries = feed.entries()
    deliver(bench, feed.batches())
    good = entries[:1001] + entries[1002:]
    # The order of what is behind a message that fails is not promised.
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(good), ordered=False)
    prefix = wire_prefix(bench)
    assert_same(read_topic(bench.kafka, bench.trades), trade_messages(entries, prefix))
    [letter] = read_topic(bench.kafka, bench.dead)
    frame = entries[1001].frame
    assert frame.payload.startswith(letter.value)
    assert len(letter.value) > 10_000
    assert letter.key == SYMBOLS[1].encode()
    assert (letter.headers["stage"], letter.headers["frame"]) == (b"sink", frame.tag.encode())
    assert b"MSG_SIZE_TOO_LARGE" in letter.headers["reason"]
    assert bench.sink.stats.dead_letters == 1
    assert bench.sink.refused == []
    assert bench.sink.trouble == ""


def test_a_frame_above_the_clients_own_limit_is_refused_at_once(
    bench: Bench, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        feed.add(*[SYMBOLS[i % 4]] * 2, padding=letters(1_100_000 if i == 4 else 10))
    entries = feed.entries()
    told = watch_writes(monkeypatch)
    deliver(bench, feed.batches())
    assert (0, 0) in told or (4, 0) in told
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries[:4] + entries[5:]), False)
    stored = read_topic(bench.kafka, bench.trades)
    assert_same(stored, trade_messages(entries, wire_prefix(bench)), ordered=False)
    [letter] = read_topic(bench.kafka, bench.dead)
    assert letter.headers["frame"] == entries[4].frame.tag.encode()


@pytest.mark.parametrize("lowered", ["before it is opened", "behind its back"])
def test_a_trade_that_is_refused_is_told_before_its_entry_is_acknowledged(
    real_bench: Bench, tmp_path: Path, lowered: str
) -> None:
    """The larger ones, which are few, are those of a symbol with long names."""
    bench, long = real_bench, letters(56) + "/EUR"
    folder = tmp_path / "long"
    folder.mkdir()
    feed = Feed(folder, {**NAMES, long: letters(56) + "/EUR"})
    for i in range(500):
        trades = [SYMBOLS[i % 4]] * 3
        for rank in {100: (0, 2), 300: (1,)}.get(i, ()):
            trades[rank] = long
        feed.add(*trades)
    entries = feed.entries()
    sizes = {
        is_long: [
            len(body) for e in entries for symbol, body in e.trades if (symbol == long) is is_long
        ]
        for is_long in (False, True)
    }
    # The key's bytes and those of a batch around a message.
    limit = max(sizes[False]) + 100
    assert min(sizes[True]) + len(long) + 61 > limit
    bench.create_topics()
    if lowered == "before it is opened":
        bench.set_limit(bench.trades, limit)
        bench.open()
    else:
        bench.open()
        bench.set_limit(bench.trades, limit)
    refused = {(entries[i].end, rank) for i, rank in ((100, 0), (100, 2), (300, 1))}

    def look(acknowledged: int) -> None:
        told = set(bench.sink.refused)
        assert told <= refused
        assert told >= {place for place in refused if place[0] <= acknowledged}

    deliver(bench, feed.batches(), meanwhile=look)
    assert sorted(bench.sink.refused) == sorted(refused)
    prefix = wire_prefix(bench)
    messages = trade_messages(entries, prefix)
    good = [message for message in messages if message.key != long.encode()]
    assert_same(read_topic(bench.kafka, bench.trades), good, ordered=False)
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries))
    letters_stored = {letter.value for letter in read_topic(bench.kafka, bench.dead)}
    assert letters_stored == {message.value for message in messages} - {m.value for m in good}
    feed.close()


# What an operator can heal


def test_a_topic_deleted_under_load_is_made_again_and_gets_what_waited(
    real_bench: Bench, feed: Feed
) -> None:
    bench = real_bench.open()
    feed.add_many(20_000)
    entries = feed.entries()
    admin = bench.kafka.admin()
    safe_from: list[int] = []

    def delete(acknowledged: int) -> None:
        if acknowledged > entries[2000].end and not safe_from:
            for future in admin.delete_topics([bench.trades]).values():
                future.result(10)
            bench.wait_gone(bench.trades)
            safe_from.append(bench.handed)

    deliver(bench, feed.batches(), meanwhile=delete, window_bytes=1 << 19)
    assert entries[2000].end < safe_from[0] < entries[10_000].end
    stored = read_topic(bench.kafka, bench.trades)
    assert len({message.value for message in stored}) == len(stored)
    # What the broker took before the topic was gone may be gone with it; nothing else is.
    prefix = wire_prefix(bench)
    safe = trade_messages((e for e in entries if e.end > safe_from[0]), prefix)
    assert {m.value for m in stored} >= {m.value for m in safe}
    assert {m.value for m in stored} <= {m.value for m in trade_messages(entries, prefix)}
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries))


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
    admin = bench.kafka.admin()
    for future in admin.delete_topics([topic]).values():
        future.result(10)
    bench.wait_gone(topic)
    wait_refused(bench, topic)
    deliver(bench, batches[1:])
    kept, made_anew = entries, entries[len(batches[0]) :]
    prefix = wire_prefix(bench)
    raw, trades = (made_anew, kept) if kind == "raw" else (kept, made_anew)
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(raw), ordered=False)
    assert_same(read_topic(bench.kafka, bench.trades), trade_messages(trades, prefix), False)


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


def test_a_topic_without_permission_waits_says_so_and_keeps_the_order(
    real_bench: Bench, feed: Feed
) -> None:
    bench = real_bench.open()
    heal = deny(bench, bench.trades, AclOperation.WRITE)
    feed.add_many(4000, trades=2)
    entries = feed.entries()
    batches = list(feed.batches())
    more = batches.pop()

    def heal_and_write() -> None:
        assert bench.trades in bench.sink.trouble
        assert bench.sink.write(more) == 0
        heal()

    look = once_in_trouble(bench, "TOPIC_AUTHORIZATION_FAILED", heal_and_write)
    deliver(bench, batches, meanwhile=look)
    deliver(bench, [more])
    assert_stored(bench, entries)
    assert bench.sink.trouble == ""
    assert bench.sink.stats.failures["message"] > 0


@pytest.mark.parametrize("outage", ["stopped for a while", "killed and started again"])
def test_an_outage_of_the_broker_loses_and_doubles_nothing(
    real_bench: Bench, feed: Feed, outage: str
) -> None:
    bench = real_bench.open()
    kafka = bench.kafka
    assert isinstance(kafka, Kafka)
    feed.add_many(20_000)
    entries = feed.entries()
    broken: list[int] = []
    look = once_in_trouble(bench, "acknowledges nothing", kafka.continue_signal)

    def break_it(acknowledged: int) -> None:
        if acknowledged > entries[3000].end and not broken:
            broken.append(acknowledged)
            if outage == "stopped for a while":
                kafka.stop_signal()
            else:
                kafka.restart()
        look(acknowledged)

    deliver(bench, feed.batches(), meanwhile=break_it)
    assert broken
    assert_stored(bench, entries)
    assert bench.sink.trouble == ""


# Beginning and end


def test_without_the_extension_the_sink_takes_entries_and_batches_one_by_one(
    real_bench: Bench, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.add_many(500, trades=2)
    entries, batches = feed.entries(), list(feed.batches())
    monkeypatch.setattr(native, "trades", None)
    real_bench.open()
    assert real_bench.sink._hand_over is None
    real_bench.deliver(entries[: len(batches[0])])
    deliver(real_bench, batches[1:])
    assert_stored(real_bench, entries)


def test_a_plugin_that_can_not_be_loaded_leaves_the_way_of_single_messages(
    bench: Bench, feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_batch, "plugin", lambda: str(tmp_path / "nothing.so"))
    sink = bench.new_sink()
    bench.sink.close()
    bench.sink = sink
    bench.open()
    assert sink._hand_over is None
    feed.add_many(500)
    deliver(bench, feed.batches())
    assert_stored(bench, feed.entries())


def test_another_librdkafka_than_is_known_leaves_the_way_of_single_messages(
    kafka: AnyKafka,
    registry: AnyRegistry,
    topic_prefix: str,
    feed: Feed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(kafka, registry, topic_prefix, tmp_path)
    bench.create_topics()
    assert native.trades is not None
    for library in (str(tmp_path / "not loaded.so"), native.trades.__file__):
        monkeypatch.setattr(cimpl, "__file__", library)
        assert kafka_batch.plugin() is None
    bench.open()
    assert bench.sink._hand_over is None
    feed.add_many(500)
    deliver(bench, feed.batches())
    bench.sink.close()
    assert_stored(bench, feed.entries())


def test_a_plugin_of_the_operators_that_is_not_there_is_named(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    missing = {"plugin_library_paths": str(tmp_path / "missing.so")}
    bench = Bench(kafka, registry, topic_prefix, tmp_path, **missing)
    with pytest.raises(SinkFailed, match=r"kafka\.properties: .*missing\.so"):
        bench.sink.open()
    bench.sink.close()


@pytest.mark.parametrize("end", ["closed", "dropped", "left", "forked"])
def test_a_process_ends_cleanly_with_messages_under_way(
    real_bench: Bench, tmp_path: Path, end: str
) -> None:
    bench = real_bench
    bench.create_topics()
    assert isinstance(bench.kafka, Kafka)
    servers, url = bench.config.bootstrap_servers, bench.config.schema_registry_url
    script = str(Path(__file__).resolve())
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", script, servers, url, bench.config.topic_prefix, end],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONMALLOC": "debug",
            "MALLOC_CHECK_": "3",
            "MALLOC_PERTURB_": "165",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert "open\n" in lines
        bench.kafka.stop_signal()
        child.stdin.write("stopped\n")
        child.stdin.flush()
        told, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, errors
    assert told.splitlines()[-1] == "1200 of 1200 left"
    assert "Error" not in errors, errors


def end_with_messages_under_way(servers: str, url: str, prefix: str, end: str) -> None:
    """The process that ends so: the broker stops once it has said that its sink is open."""
    folder = Path.cwd()
    feed = Feed(folder)
    config = KafkaConfig(servers, url, prefix, PARTITIONS, {})
    sink = KafkaSink(config, "testex", linger_s=0.005, dead_dir=folder, log=log.get())
    assert sink.open()
    feed.add_many(20)
    [first] = feed.batches()
    assert sink.write(first) == 20
    eventually(lambda: sink.poll(0.1) == first.end, 30, "the first batch is stored")
    print("open", flush=True)
    sys.stdin.readline()
    feed.add_many(400, trades=2)
    for batch in feed.batches():
        assert sink.write(batch) == len(batch)
    del batch
    left = sum(pending.left for pending in sink._pendings)
    if end == "closed":
        sink.close()
        feed.add_many(1)
        assert sink.write(next(feed.batches())) == 0
    elif end == "dropped":
        del sink
        gc.collect()
    elif end == "forked":
        child = os.fork()
        if not child:
            sink._pendings.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        sink.close()
    print(f"{left} of 1200 left", flush=True)


if __name__ == "__main__":
    end_with_messages_under_way(*sys.argv[1:])
