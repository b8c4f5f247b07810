"""What Kafka never stores, in batches and message by message: it becomes a dead letter, cut and
copied if need be, and harms no other."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from frame_twins import NEEDS_NATIVE
from kafka_batch_rig import (
    EITHER_WAY,
    NAMES,
    SYMBOLS,
    Feed,
    Way,
    assert_same,
    deliver,
    feed,
    letters,
    raw_messages,
    trade_messages,
    watch_writes,
    wire_prefix,
)
from kafka_rig import RECEIVED_NS, Bench, bench, entry, read_topic, real_bench

from feedmono import log
from feedmono.sinks import kafka_dead
from feedmono.sinks.base import DeadLetter, Entry, Frame
from feedmono.trade import STREAM

__all__ = ["bench", "feed", "real_bench"]

LOWERED = pytest.mark.parametrize("lowered", ["before it is opened", "behind its back"])


def open_with_limit(bench: Bench, topic: str, limit_bytes: int, lowered: str) -> None:
    """Has the topic take no larger messages, which the sink finds as it opens or must find out."""
    bench.create_topics()
    if lowered == "behind its back":
        bench.open()
    bench.set_limit(topic, limit_bytes)
    if lowered == "before it is opened":
        bench.open()


@LOWERED
@EITHER_WAY
def test_a_frame_too_large_is_a_dead_letter_and_harms_no_other(
    real_bench: Bench, feed: Feed, way: Way, lowered: str
) -> None:
    """Behind its back, whole batches of the broker's are above the limit: all 2,001 would fail."""
    bench = real_bench
    open_with_limit(bench, bench.raw, 20_000, lowered)
    for i in range(2001):
        large = i == 1001
        feed.add(SYMBOLS[i % 4], padding=letters(30_000 if large else 100))
    entries = feed.entries()
    deliver(bench, way(feed))
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


@LOWERED
@EITHER_WAY
def test_a_trade_that_is_refused_is_told_before_its_entry_is_acknowledged(
    real_bench: Bench, tmp_path: Path, way: Way, lowered: str
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
    open_with_limit(bench, bench.trades, limit, lowered)
    refused = {(entries[i].end, rank) for i, rank in ((100, 0), (100, 2), (300, 1))}

    def look(acknowledged: int) -> None:
        told = set(bench.sink.refused)
        assert told <= refused
        assert told >= {place for place in refused if place[0] <= acknowledged}

    deliver(bench, way(feed), meanwhile=look)
    assert sorted(bench.sink.refused) == sorted(refused)
    prefix = wire_prefix(bench)
    messages = trade_messages(entries, prefix)
    good = [message for message in messages if message.key != long.encode()]
    assert_same(read_topic(bench.kafka, bench.trades), good, ordered=False)
    assert_same(read_topic(bench.kafka, bench.raw), raw_messages(entries))
    dead = [letter.value for letter in read_topic(bench.kafka, bench.dead)]
    assert sorted(dead) == sorted({m.value for m in messages} - {m.value for m in good})
    feed.close()


def test_a_raw_message_that_is_refused_is_none_of_the_refused_trades(real_bench: Bench) -> None:
    bench = real_bench
    bench.create_topics()
    bench.set_limit(bench.raw, 20_000)
    bench.open()
    bench.deliver([entry(0), entry(1, payload=os.urandom(30_000)), entry(2)])
    assert len(read_topic(bench.kafka, bench.dead)) == 1
    assert bench.sink.refused == []


@NEEDS_NATIVE
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
