"""What reading a topic takes: a consumer in a group of its own that commits nothing, and what there
is to read."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from feedmono.config import KafkaConfig
from feedmono.sinks.kafka_client import (
    REQUESTS_LIMIT_S,
    BrokerTrouble,
    ClientLog,
    describe,
    properties,
)

WAIT_S = 0.5
"""How long to wait for messages at a time."""
# A broker that is restarted comes back within that time.
_SILENT_S = 30.0
_NO_TOPIC = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})

TO_THE_END: Mapping[str, str | int | bool] = {
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    # A transaction's marker, or what compaction removed, may be the last offset.
    "enable_partition_eof": True,
    "queued_max_messages_kbytes": 16 * 1024,
    "fetch_max_bytes": 8 << 20,
}
"""Properties of a consumer that reads all there is."""


class Range(NamedTuple):
    """The offsets that a partition holds."""

    low: int
    high: int
    """Behind the last one."""


@contextlib.contextmanager
def consuming(
    config: KafkaConfig,
    topic: str,
    purpose: str,
    client_log: ClientLog,
    blamed: str = "kafka.properties",
    /,
    **own: str | int | bool,
) -> Generator[Consumer, None, None]:
    """A consumer; its errors as `BrokerTrouble`.

    :param blamed: what an operator calls the properties that it may not take.
    :param own: its properties beside those of all clients, dots as underscores.
    """
    name = f"feedmono-{purpose}"
    group = f"{name}-{uuid.uuid4()}"
    try:
        consumer = Consumer(
            properties(config, name, client_log, group_id=group, enable_auto_commit=False, **own)
        )
    except KafkaException as error:
        raise BrokerTrouble(f"{blamed}: {describe(error)}") from error
    try:
        yield consumer
    except KafkaException as error:
        raise BrokerTrouble(f"can't read topic {topic}: {describe(error)}") from error
    finally:
        consumer.close()


def held(consumer: Consumer, topic: str) -> dict[int, Range] | None:
    """What each partition holds now; None if there is no such topic.

    :raises KafkaException: the broker does not tell.
    """
    metadata = consumer.list_topics(topic, REQUESTS_LIMIT_S).topics[topic]
    if metadata.error is not None:
        if metadata.error.code() in _NO_TOPIC:
            return None
        raise KafkaException(metadata.error)
    ranges = {}
    for number in sorted(metadata.partitions):
        place = TopicPartition(topic, number)
        ranges[number] = Range(*consumer.get_watermark_offsets(place, REQUESTS_LIMIT_S))
    return ranges


def limit_silence(silent_s: float, topic: str, client_log: ClientLog) -> None:
    """:raises BrokerTrouble: nothing came for too long."""
    if silent_s > _SILENT_S:
        reason = client_log.last_error or "no reason is known"
        raise BrokerTrouble(f"can't read topic {topic}: nothing came for {_SILENT_S:g} s: {reason}")
