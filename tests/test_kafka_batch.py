"""Batches through the Kafka sink, which hands them over without a step in Python for each message:
the same is stored as of their entries one by one."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from pathlib import Path

import psutil
import pytest
from broker import Kafka, eventually
from frame_twins import NEEDS_NATIVE
from kafka_batch_rig import (
    SYMBOLS,
    Feed,
    assert_stored,
    by_key,
    deliver,
    feed,
    letters,
    offer,
    watch_writes,
    wire_prefix,
)
from kafka_rig import AnyRegistry, Bench, bench, read_topic, real_bench, short_queue

from feedmono.sinks.kafka_batch import BatchPending

__all__ = ["bench", "feed", "real_bench", "short_queue"]

pytestmark = NEEDS_NATIVE


def test_batches_arrive_as_exact_bytes_with_key_partition_and_header(
    bench: Bench, feed: Feed
) -> None:
    feed.add_all_kinds()
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
    feed.add_all_kinds()
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
    short_queue: Bench, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = short_queue
    feed.add_many(500, trades=3)
    entries = feed.entries()
    told = watch_writes(monkeypatch)
    splits = deliver(bench, feed.batches(50))
    bench.sink.close()
    assert splits > 20
    assert told[0] == (2, 2), "two records, and of the third the raw message and a trade"
    assert_stored(bench, entries)


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
