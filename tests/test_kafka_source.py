"""What the Kafka sink stored, read back: everything once, and told what can't be read."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from broker import Kafka, MockKafka, eventually, free_port
from confluent_kafka import Producer, TopicPartition
from kafka_rig import RECEIVED_NS, AnyRegistry, Bench, bench, call, read_topic, real_bench

from feedmono import avro
from feedmono.sinks import kafka_consumer
from feedmono.sinks.base import KINDS, Coverage, DeadLetter, Entry, Frame
from feedmono.sinks.kafka_client import BrokerTrouble
from feedmono.sinks.kafka_source import KafkaSource
from feedmono.sinks.registry import RegistryTrouble, probe_registry
from feedmono.trade import BACKFILL, BUY, STREAM, Trade

__all__ = ["bench", "real_bench"]

ENCODER = avro.TradeEncoder("testex")


def trade_entry(i: int, symbol: str = "BTCUSDT") -> Entry:
    trade = Trade(symbol, i, "1.10", "2.0", BUY, 1_732_320_000_000_000 + i)
    names = {symbol: "BTC/USDT"}
    encoded = ENCODER.encode((trade,), names, STREAM, RECEIVED_NS, i, 1_732_320_000_100)
    return Entry(i, Frame(b"{%d}" % i, 1, i, RECEIVED_NS + i, BACKFILL), symbol, encoded)


def test_a_source_follows_the_trades_that_are_stored_from_now_on(
    bench: Bench, registry: AnyRegistry
) -> None:
    bench.deliver([trade_entry(1)])
    following = KafkaSource(bench.config, "testex").follow()
    found: list[Any] = []
    deadline = time.monotonic() + 30
    with contextlib.closing(following):  # type: ignore[type-var]
        for number in range(2, 10_000):
            # Once it has its partitions, everything that is stored comes.
            bench.deliver([trade_entry(number)])
            if (trade := next(following)) is not None:
                found.append(trade)
            if len(found) == 5:
                break
            assert time.monotonic() < deadline
    ids = [int(trade["trade_id"]) for trade in found]
    assert ids == list(range(ids[0], ids[0] + 5))
    assert ids[0] > 1
    assert found[0]["quote_volume"] == "2.200"
    assert "answers" in probe_registry(bench.config)


def test_a_source_reads_everything_that_is_stored_at_the_call(bench: Bench) -> None:
    source = KafkaSource(bench.config, "testex")
    symbols = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    batch = [trade_entry(i, symbols[i % 3]) for i in range(1, 3001)]
    batch[9] = batch[9]._replace(dead=DeadLetter("normalize", "odd", "BTCUSDT"))
    bench.deliver(batch)
    bench.sink.cover([Coverage("BTCUSDT", 0, 1, 3000, (), 0, 0, 0, 1_732_320_000_000_000)])
    eventually(lambda: bench.sink.poll(0) is not None and source.total("coverage") == 1, 20, "one")
    assert [source.total(kind) for kind in ("trades", "raw", "dead")] == [3000, 3000, 1]
    assert all(source.complete_from_start(kind) for kind in KINDS)
    reading = source.read("trades")
    bench.deliver([trade_entry(i) for i in range(3001, 3100)])
    trades = list(reading)
    assert sorted(int(str(r.record["trade_id"])) for r in trades if r.record) == [*range(1, 3001)]
    assert {r.key for r in trades} == {*symbols}
    assert len({r.place for r in trades}) == 3000
    for symbol in symbols:  # each is in one partition
        ids = [int(str(r.record["trade_id"])) for r in trades if r.record and r.key == symbol]
        assert ids == sorted(ids)
    raw = {r.value: r for r in source.read("raw")}
    assert len(raw) == 3099
    assert raw[b"{7}"].record == {
        "connection": 1,
        "sequence": 7,
        "received_ns": RECEIVED_NS + 7,
        "origin": BACKFILL,
        "payload": b"{7}",
    }
    [dead] = source.read("dead")
    assert dead.record == {
        "connection": 1,
        "sequence": 10,
        "received_ns": RECEIVED_NS + 10,
        "symbol": "BTCUSDT",
        "stage": "normalize",
        "reason": "odd",
        "payload": b"{10}",
    }
    [covered] = source.read("coverage")
    assert covered.record is not None
    assert (covered.key, covered.record["to_id"]) == ("BTCUSDT", 3000)


def test_a_source_tells_what_it_can_not_decode_and_reads_on(
    bench: Bench, registry: AnyRegistry
) -> None:
    bench.deliver([trade_entry(1)])
    [record] = read_topic(bench.kafka, bench.trades)
    other = json.dumps({"type": "record", "name": "X", "fields": [{"name": "x", "type": "long"}]})
    versions = f"{registry.url}/subjects/other-value/versions"
    number = call("POST", versions, {"schema": other})["id"]
    foreign = Producer({"bootstrap.servers": bench.config.bootstrap_servers})
    planted = [
        b"not Avro at all",
        b"\0\0",
        None,
        record.value[:-3],
        record.value + b"x",
        b"\0" + (2**30).to_bytes(4, "big") + record.value[5:],
        b"\0" + number.to_bytes(4, "big") + record.value[5:],
    ]
    for value in planted:
        foreign.produce(bench.trades, value, "BTCUSDT", 0)
    headers: list[Any] = [
        None,
        [("frame", b"1:2:3")],
        [("frame", b"1:2:3:9")],
        [("frame", b"\xff")],
    ]
    for given in headers:
        foreign.produce(bench.raw, b"payload", b"\xff", 0, headers=given)
        foreign.produce(bench.dead, b"payload", None, 0, headers=given)
    foreign.produce(bench.dead, b"payload", None, 0, headers=[("frame", b"1:2:3:0")])
    foreign.produce(
        bench.dead, b"x", None, 0, headers={"frame": b"0:-1:3:0", "stage": b"ring", "reason": b"r"}
    )
    assert not foreign.flush(10)
    bench.deliver([trade_entry(2)])
    source = KafkaSource(bench.config, "testex")
    trades = list(source.read("trades"))
    assert sorted(str(r.record["trade_id"]) for r in trades if r.record) == ["1", "2"]
    broken = [r for r in trades if r.record is None]
    assert [r.value for r in broken] == [value or b"" for value in planted]
    assert all(r.error and r.place.startswith(f"{bench.trades} partition 0 offset") for r in broken)
    assert "Confluent's wire format" in broken[0].error
    assert f"schema {2**30}" in broken[5].error
    raw = list(source.read("raw"))
    assert len([r for r in raw if r.record]) == 2
    broken = [r for r in raw if r.record is None]
    assert len(broken) == 4
    assert "header frame is missing" in broken[0].error
    assert "'1:2:3'" in broken[1].error
    assert broken[0].key == "\\xff"
    *broken, letter = source.read("dead")
    assert [r.record for r in broken] == [None] * 5
    assert "header stage is missing" in broken[4].error
    assert letter.record is not None
    assert (letter.record["sequence"], letter.record["stage"]) == (-1, "ring")


def test_a_source_reads_committed_transactions_only_and_comes_to_their_end(
    real_bench: Bench,
) -> None:
    bench = real_bench.open()
    bench.deliver([trade_entry(1)])
    [record] = read_topic(bench.kafka, bench.trades)
    foreign = Producer(
        {"bootstrap.servers": bench.config.bootstrap_servers, "transactional.id": bench.trades}
    )
    foreign.init_transactions(30)
    for end in (foreign.commit_transaction, foreign.abort_transaction):
        foreign.begin_transaction()
        foreign.produce(bench.trades, record.value, "BTCUSDT", 0)
        foreign.flush(10)
        end(30)
    source = KafkaSource(bench.config, "testex")
    assert len(list(source.read("trades"))) == 2
    foreign.begin_transaction()
    foreign.produce(bench.trades, record.value, "BTCUSDT", 0)
    foreign.flush(10)
    started = time.monotonic()
    assert len(list(source.read("trades"))) == 2
    assert time.monotonic() - started < 30
    foreign.abort_transaction(30)


def test_a_source_tells_whether_a_retention_has_removed_something(real_bench: Bench) -> None:
    bench = real_bench.open()
    bench.deliver([trade_entry(i) for i in range(1, 11)])
    source = KafkaSource(bench.config, "testex")
    assert source.complete_from_start("trades")
    [partition] = {r.partition for r in read_topic(bench.kafka, bench.trades)}
    place = TopicPartition(bench.trades, partition, 4)
    admin = bench.kafka.admin()
    for future in admin.delete_records([place]).values():
        future.result(10)
    assert not source.complete_from_start("trades")
    assert source.complete_from_start("raw")
    assert source.total("trades") == 6
    ids = [r.record and r.record["trade_id"] for r in source.read("trades")]
    assert ids == ["5", "6", "7", "8", "9", "10"]


def test_a_source_without_topic_is_empty_and_without_broker_or_registry_says_so(
    bench: Bench, registry: AnyRegistry, topic_prefix: str
) -> None:
    source = KafkaSource(bench.config, "nobody")
    if not isinstance(bench.kafka, MockKafka):  # that makes a topic whenever it is asked for one
        assert [list(source.read(kind)) for kind in KINDS] == [[], [], [], []]
        assert source.total("trades") == 0
        assert source.complete_from_start("trades")
    nowhere = replace(bench.config, bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerTrouble, match="Connection refused"):
        KafkaSource(nowhere, "testex").read("trades")
    bench.deliver([trade_entry(1)])
    alone = replace(bench.config, schema_registry_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryTrouble, match="refused"):
        list(KafkaSource(alone, "testex").read("trades"))


def test_a_broker_that_falls_silent_ends_the_reading(
    real_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "_SILENT_S", 2.0)
    bench = real_bench.open()
    bench.deliver([trade_entry(i) for i in range(1, 11)])
    reading = KafkaSource(bench.config, "testex").read("trades")
    assert isinstance(bench.kafka, Kafka)
    bench.kafka.stop_signal()
    with pytest.raises(BrokerTrouble, match="nothing came for 2 s"):
        list(reading)
