"""The whole way of a trade into a broker, read back by an independent consumer."""

from __future__ import annotations

import io
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from broker import Kafka
from instance import Instance, assert_complete, by_symbol
from kafka_rig import AnyKafka, AnyRegistry, read_topic
from sim import Sim

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "trade.avsc").read_text())


def normalized(
    kafka: AnyKafka, registry: AnyRegistry, topic: str, reader_schema: Any = None
) -> Iterator[dict[str, Any]]:
    """The trades of a topic, decoded with the schema that the registry has for their id, as a
    consumer with *reader_schema* (None: the same) reads them."""
    schemas: dict[int, Any] = {}
    for message in read_topic(kafka, topic):
        value = message.value
        assert value[0] == 0
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in schemas:
            with urllib.request.urlopen(f"{registry.url}/schemas/ids/{schema_id}") as answer:
                schemas[schema_id] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        record = fastavro.schemaless_reader(
            io.BytesIO(value[5:]), schemas[schema_id], reader_schema
        )
        assert isinstance(record, dict)
        assert message.key == record["symbol"].encode()
        yield record


def into(
    kafka: AnyKafka, registry: AnyRegistry, prefix: str, **variables: object
) -> dict[str, object]:
    return {
        "SINK": "kafka",
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "SCHEMA_REGISTRY_URL": registry.url,
        "TOPIC_PREFIX": prefix,
        "KAFKA_PARTITIONS": 4,
        **variables,
    }


def test_60000_trades_at_2000_a_second_arrive_once_beside_another_exchange(
    tmp_path: Path, kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str
) -> None:
    with (
        Sim("binance", "--rate", "2000", "--limit", "60000", "--hold") as binance,
        Sim("kraken", "--rate", "100", "--limit", "3000", "--batch", "4", "--hold") as kraken,
        Instance(tmp_path, binance, kraken, **into(kafka, registry, topic_prefix)) as feedmono,
    ):
        feedmono.wait_trades("binance", 60_000, limit_s=90)
        feedmono.wait_trades("kraken", 3_000, limit_s=60)
        assert feedmono.stop() == 0
        for sim, total in ((binance, 60_000), (kraken, 3_000)):
            topic = f"{topic_prefix}.{sim.exchange}"
            trades = by_symbol(normalized(kafka, registry, topic))
            assert_complete(trades, sim)
            assert sum(map(len, trades.values())) == total
            _assert_raw_holds(kafka, f"{topic}.raw", trades)
            old = {**SCHEMA, "fields": SCHEMA["fields"][:12]}
            assert {len(t) for t in normalized(kafka, registry, topic, old)} == {12}
            assert not read_topic(kafka, f"{topic}.dead")


def _assert_raw_holds(kafka: AnyKafka, topic: str, trades: dict[str, list[dict[str, Any]]]) -> None:
    """The raw topic has each frame once, and each trade's frame names the trade."""
    frames: dict[int, bytes] = {}
    for message in read_topic(kafka, topic):
        assert list(message.headers) == ["frame"]
        tag = message.headers["frame"]
        _connection, sequence, received_ns, origin = map(int, tag.split(b":"))
        assert sequence not in frames
        assert received_ns > 1_700_000_000_000_000_000
        assert origin in (0, 1)
        frames[sequence] = message.value
    used = set()
    for records in trades.values():
        for record in records:
            frame = frames[record["frame_sequence"]]
            assert record["trade_id"].encode() in frame
            assert record["price"].encode() in frame
            used.add(record["frame_sequence"])
    assert used == set(frames)


@pytest.mark.timeout(900)
def test_ten_kills_of_the_serializer_lose_nothing_and_double_at_most_the_window(
    tmp_path: Path, kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, full: bool
) -> None:
    window = 500
    kills = 100 if full else 10
    with (
        Sim("binance", "--rate", "2000", "--hold") as sim,
        Instance(tmp_path, sim, **into(kafka, registry, topic_prefix, WINDOW=window)) as feedmono,
    ):
        for _ in range(kills):
            before = feedmono.of("binance")
            feedmono.wait_trades("binance", before["delivered"] + 300)
            victim = feedmono.of("binance")["serializer_pid"]
            os.kill(victim, signal.SIGKILL)
            feedmono.wait_replaced("binance", "serializer", victim)
        sim.fault("pause", True)
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] == 0)
        assert feedmono.stop() == 0
        trades = by_symbol(normalized(kafka, registry, f"{topic_prefix}.binance"))
        assert_complete(trades, sim, doubled=kills * window)
        sent = {s: t["last_id"] for s, t in sim.state()["symbols"].items()}
        assert {s: max(int(t["trade_id"]) for t in ts) for s, ts in trades.items()} == sent


def test_broker_and_registry_that_come_later_get_everything_captured_before(
    tmp_path: Path, real_kafka: Kafka, registry: AnyRegistry, topic_prefix: str
) -> None:
    with (
        Sim("binance", "--rate", "1000", "--limit", "3000", "--hold") as sim,
        Kafka() as late,
    ):
        late.kill()
        with Instance(tmp_path, sim, **into(late, registry, topic_prefix)) as feedmono:
            sim.wait(lambda s: sum(t["sent"] for t in s["symbols"].values()) == 3000)
            feedmono.wait(lambda s: late.bootstrap_servers in s[0]["detail"])
            late.restart()
            feedmono.wait_trades("binance", 3000)
            assert feedmono.stop() == 0
            trades = by_symbol(normalized(late, registry, f"{topic_prefix}.binance"))
            assert_complete(trades, sim)
            assert sum(map(len, trades.values())) == 3000


def test_the_raw_topic_holds_the_exact_bytes_of_every_frame(
    tmp_path: Path, kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str
) -> None:
    # Spaces, escapes, an unknown key: nothing that a parser and a writer would give back.
    frames = [
        '{"stream":"btcusdt@trade","data":{"e":"trade", "E":1,"s":"BTCUSDT",'
        f'"t":{i},\t"p":"1.50","q":"0.{i}0","T":17231612553420{i:02},"m":true,"M":true,'
        '"x":"\\u00e9 币"}}'
        for i in range(1, 60)
    ]
    with (
        Sim("binance", "--rate", "1", "--symbols", "BTCUSDT") as sim,
        Instance(
            tmp_path, sim, **into(kafka, registry, topic_prefix, BINANCE_SYMBOLS="BTCUSDT")
        ) as feedmono,
    ):
        sim.fault("pause")
        feedmono.wait(lambda s: s[0]["subscribed"] == 1)
        made = feedmono.of("binance")["trades"]
        for frame in frames:
            sim.send(frame)
        feedmono.wait(lambda s: s[0]["delivered"] >= made + len(frames))
        assert feedmono.stop() == 0
        stored = [m.value for m in read_topic(kafka, f"{topic_prefix}.binance.raw")]
        assert {frame.encode() for frame in frames} <= set(stored)
        assert len(stored) == len(set(stored))
