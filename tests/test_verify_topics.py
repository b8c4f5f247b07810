"""``feedmono verify`` of topics, and of lists of records that are like them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from broker import Kafka, MockKafka, MockRegistry, Registry, eventually
from verify_rig import (
    BTC,
    ETH,
    EXCHANGE,
    FIRST_SEQUENCE,
    TIME_US,
    World,
    configured,
    counts,
    named,
    only_symbol,
    payload,
    record,
    trade,
    world,
)

from feedmono import log
from feedmono.commands.ledger_table import Look, look
from feedmono.exchanges import load
from feedmono.sinks.base import DeadLetter, Entry, Source, StoredRecord
from feedmono.sinks.kafka import KafkaSink
from feedmono.trade import BACKFILL, STREAM, Trade
from feedmono.verify import verify
from feedmono.verify.findings import DOUBLED, INVALID, MISSING, RAW_MISSING
from feedmono.verify.verify import Verifier

__all__ = ["world"]


class Stored(Source):
    """A sink as a list of records, such as a topic is."""

    def __init__(self, raw: Sequence[StoredRecord], trades: Sequence[StoredRecord]) -> None:
        self.records = {"raw": raw, "trades": trades, "dead": ()}
        self.complete = True
        self.before: dict[str, Callable[[], None]] = {}

    def follow(self) -> Iterator[Mapping[str, object] | None]:
        raise NotImplementedError

    def read(self, kind: str) -> Iterator[StoredRecord]:
        self.before.get(kind, lambda: None)()
        return iter(self.records[kind])

    def total(self, kind: str) -> int | None:
        return len(self.records[kind])

    def complete_from_start(self, kind: str) -> bool:
        return self.complete


def topics(trades: Sequence[Trade]) -> Stored:
    raw, normalized = [], []
    for number, t in enumerate(trades):
        sequence, body = FIRST_SEQUENCE + number, payload([t], STREAM)
        frame = {"connection": 1, "sequence": sequence, "received_ns": 5, "origin": STREAM}
        raw.append(StoredRecord(f"raw {number}", {**frame, "payload": body}, "", t.symbol, body))
        content = record(t, sequence, STREAM)
        normalized.append(StoredRecord(f"trades {number}", content, "", t.symbol, b""))
    return Stored(raw, normalized)


def told(world: World) -> Look:
    now = look(world.config, EXCHANGE)
    assert now is not None
    return now


def test_a_key_that_is_not_the_symbol_is_invalid(world: World) -> None:
    world.frames([1, 2, 3], to_sink=False)
    world.commit()
    source = topics([trade(n) for n in (1, 2, 3)])
    records = list(source.records["trades"])
    records[1] = records[1]._replace(key=ETH)
    source.records["trades"] = records
    result = Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()
    assert counts(result) == {(INVALID, BTC): 1}


def test_the_order_of_partitions_does_not_matter(world: World) -> None:
    world.frames(range(1, 300), to_sink=False)
    world.commit()
    source = topics([trade(n) for n in range(1, 300)])
    for kind in ("raw", "trades"):
        source.records[kind] = random.Random(1).sample(source.records[kind], 299)
    assert counts(Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()) == {}


def test_a_topic_whose_beginning_is_gone_tells_so_itself(world: World) -> None:
    world.frames(range(1, 11), to_sink=False)
    world.frames(range(1, 5), ETH, to_sink=False)
    world.commit()
    source = topics([trade(n) for n in range(1, 11)])
    source.complete = False
    source.records["trades"] = source.records["trades"][4:]
    source.records["raw"] = source.records["raw"][6:]
    result = Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()
    assert counts(result) == {}
    assert [(c.symbol, c.removed, c.raw_removed) for c in result.symbols] == [
        (BTC, 4, 2),
        (ETH, 4, 0),
    ]


def test_the_ledger_is_read_again_for_what_comes_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a hole that is filled and an epoch that begins while the sink is read."""
    monkeypatch.setattr(verify, "_REFRESH_S", 0.0)
    monkeypatch.setattr(verify, "_REFRESH_SHARE", 0)
    late = TIME_US + 100_000_000
    trades = [trade(n) for n in (1, 2, 5, 4, 6)] + [trade(n, time_us=late + n) for n in (1, 2)]
    source = topics(trades)
    for t in trades[:3]:
        world.frame(t, to_sink=False)
    world.commit()

    def meanwhile() -> None:
        for t in trades[3:]:
            world.frame(t, to_sink=False)
        world.commit()

    source.before["trades"] = meanwhile
    result = Verifier(
        load(EXCHANGE), source, lambda: told(world), keyed=True, running=lambda: True
    ).run()
    assert counts(result) == {}
    assert only_symbol(result).in_flight == 0
    assert only_symbol(result).trades == 7


def test_topics_are_verified_by_key_header_and_offset(
    kafka: Kafka | MockKafka,
    registry: Registry | MockRegistry,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    config = configured(
        tmp_path,
        FEEDMONO_SINK="kafka",
        FEEDMONO_KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        FEEDMONO_SCHEMA_REGISTRY_URL=registry.url,
        FEEDMONO_TOPIC_PREFIX=topic_prefix,
    )
    topic = f"{topic_prefix}.{EXCHANGE}"
    kafka.create_topics((topic, f"{topic}.raw", f"{topic}.dead", f"{topic}.coverage"), 4)
    world = World(tmp_path)
    entries: list[Entry] = []
    world.write = entries.append
    for number in range(1, 200):
        world.frames([number], BTC)
        world.frames([number], ETH, raw=number != 50)
    world.frames([300], BTC)
    world.frame(trade(250), trade(251), origin=BACKFILL)
    world.frames([250], BTC, to_ledger=False)
    world.frames([301, 302], ETH, to_sink=False)
    world.frame(dead=DeadLetter("decode", "not JSON"), body=b"garbage")
    world.commit()
    sink = KafkaSink(
        config.kafka, EXCHANGE, linger_s=0.005, dead_dir=tmp_path / "dead", log=log.get()
    )
    eventually(sink.open, 60, "the sink is open")
    assert sink.write(entries) == len(entries)
    sink.flush()
    eventually(lambda: sink.poll(0.01) == entries[-1].end, 60, "all is acknowledged")
    sink.close()
    result = verify.prepare(config, EXCHANGE, None, False).run()
    assert counts(result) == {
        (MISSING, ETH): 2,
        (DOUBLED, BTC): 1,
        (RAW_MISSING, ETH): 1,
    }
    assert named(result, RAW_MISSING) == [(50, 50)]
    assert f"{topic} partition" in result.found[1].named[0].place
    assert result.dead_letters == 1
