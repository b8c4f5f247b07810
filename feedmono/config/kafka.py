"""What the sink of Kafka works by, and the keys that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from feedmono.config.values import Key, Properties, Servers, TopicPrefix, Url, Whole


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    bootstrap_servers: str
    schema_registry_url: str = field(repr=False)
    """May carry a path, and a user and password."""
    topic_prefix: str
    partitions: int
    """Of the raw and the normalized topic, when feedmono creates them."""
    properties: Mapping[str, str] = field(repr=False)
    """Passed to librdkafka as they are; secrets among them."""


_COMPLETE = "it belongs to the promise that no trade is lost or doubled, so it can't be changed"
_ORDERS = "feedmono reads and confirms positions itself, so it can't be changed"

# What each does: librdkafka's CONFIGURATION.md.
_OWNED_PROPERTIES: Mapping[str, str] = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "metadata.broker.list": "set kafka.bootstrap_servers",
    "linger.ms": "set linger",
    "queue.buffering.max.ms": "set linger",
    "enable.idempotence": _COMPLETE,
    "enable.gapless.guarantee": "one refused message would stop all others for good",
    "acks": _COMPLETE,
    "request.required.acks": _COMPLETE,
    "retries": _COMPLETE,
    "message.send.max.retries": _COMPLETE,
    "message.timeout.ms": f"{_COMPLETE}: messages wait for the broker without end",
    "delivery.timeout.ms": f"{_COMPLETE}: messages wait for the broker without end",
    "delivery.report.only.error": "feedmono counts on the report of every message",
    "partitioner": "keys land in the partitions where Java clients expect them",
    "batch.size": "it follows from the topic's max.message.bytes, read at start",
    "message.max.bytes": "it follows from the topic's max.message.bytes, read at start",
    "allow.auto.create.topics": "feedmono creates its topics itself: kafka.partitions",
    "transactional.id": "feedmono does not use transactions",
    "enable.auto.commit": _ORDERS,
    "enable.auto.offset.store": _ORDERS,
}

KEYS: Mapping[str, Key] = {
    "bootstrap_servers": Key(
        "kafka.bootstrap_servers", Servers(), "FEEDMONO_KAFKA_BOOTSTRAP_SERVERS"
    ),
    "schema_registry_url": Key(
        "kafka.schema_registry_url",
        Url(("https", "http"), bare=False),
        "FEEDMONO_SCHEMA_REGISTRY_URL",
    ),
    "topic_prefix": Key("kafka.topic_prefix", TopicPrefix(), "FEEDMONO_TOPIC_PREFIX"),
    "partitions": Key("kafka.partitions", Whole(1, 10_000), "FEEDMONO_KAFKA_PARTITIONS"),
    "properties": Key("kafka.properties", Properties(_OWNED_PROPERTIES)),
}
"""By the field of `KafkaConfig`."""
