"""``feedmono compare`` of topics: feedmono's own beside what another program produced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compare_rig import OLD_CONF, compare, compared, describe, made, named, old_record, ours, record
from confluent_kafka import Producer
from kafka_rig import AnyKafka, AnyRegistry, call

from feedmono.avro import generate_encoder, load_schema
from feedmono.compare.result import DIFFERENT, DOUBLED_B, MISSING_A, MISSING_B

COUNT = 6000


def produce(kafka: AnyKafka, topic: str, messages: list[tuple[str, bytes]]) -> None:
    kafka.create_topics([topic], 4)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 20})
    for key, value in messages:
        producer.produce(topic, value, key)
        producer.poll(0)
    assert producer.flush(30) == 0


def framed(registry: AnyRegistry, topic: str) -> Any:
    """What encodes a trade as feedmono produces it."""
    schema = json.dumps(load_schema("trade"))
    url = f"{registry.url}/subjects/{topic}-value/versions"
    number = call("POST", url, {"schema": schema})["id"]
    encode = generate_encoder(load_schema("trade"))
    return lambda trade: b"\0" + number.to_bytes(4, "big") + encode(record(trade))


def test_two_topics_one_of_them_another_programs_are_compared(
    tmp_path: Path, kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str
) -> None:
    trades = list(made(COUNT))
    topics = {name: f"{topic_prefix}.{name}" for name in ("own", "old", "spread")}
    encode = framed(registry, topics["own"])
    missing, changed, doubled = trades[1000:1005], trades[2000:2003], trades[3000:3002]
    new = {(t.symbol, t.trade_id) for t in trades[4000:4004]}
    old = [
        t.but(quantity="77") if t in changed else t
        for t in trades
        if t not in missing
        for _ in range(1 + (t in doubled))
    ]
    own = [t for t in trades if (t.symbol, t.trade_id) not in new]
    produce(kafka, topics["own"], [(t.symbol, encode(t)) for t in own])
    produce(kafka, topics["old"], [(t.symbol, json.dumps(old_record(t)).encode()) for t in old])
    variables = {
        "FEEDMONO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "FEEDMONO_SCHEMA_REGISTRY_URL": registry.url,
    }
    text = OLD_CONF.replace("path =", "topic =").replace("  received_timestamp = got\n", "")
    conf = describe(tmp_path, text.format(path=topics["old"]))
    own_topic = f"kafka:{topics['own']}"
    found = compared(own_topic, conf, "--examples", 50, status=1, **variables)
    assert named(found) == {
        MISSING_A: new,
        MISSING_B: {(t.symbol, t.trade_id) for t in missing},
        DIFFERENT: {(t.symbol, t.trade_id) for t in changed},
        DOUBLED_B: {(t.symbol, t.trade_id) for t in doubled},
    }
    assert found["b"]["latency_by"] == "Kafka's timestamp"
    assert found["latency_us"]["count"] == COUNT - len(missing) - len(new)
    assert compared(own_topic, ours(tmp_path / "a", own), status=0, **variables)["equal"]

    # Without keys a symbol's trades are in all partitions, and have no order.
    produce(kafka, topics["spread"], [(str(i), encode(t)) for i, t in enumerate(own)])
    spread = compared(f"kafka:{topics['spread']}", own_topic, status=0, **variables)
    assert [s["out_of_order"] for s in spread["symbols"]] == [None] * 3
    assert any("order is not compared for 3 symbols" in note for note in spread["notes"])
    nothing = compare(own_topic, f"kafka:{topic_prefix}.nothing", **variables)
    assert nothing.returncode == 1
    assert f"has no topic {topic_prefix}.nothing" in nothing.stderr
