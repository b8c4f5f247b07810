"""Reads an exchange's topics as any consumer would: follows the trades, or reads all there is."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from feedmono import avro
from feedmono.config import KafkaConfig
from feedmono.sinks.base import KINDS, Source, StoredRecord
from feedmono.sinks.kafka_client import ClientLog
from feedmono.sinks.kafka_consumer import TO_THE_END, WAIT_S, Range, consuming, held, limit_silence
from feedmono.sinks.kafka_topics import Topics, probe_broker
from feedmono.sinks.plain import plain
from feedmono.sinks.registry import KnownSchemas
from feedmono.trade import ORIGINS

_PREFIX_BYTES = 5
_BATCH = 1000
_FRAME = re.compile(r"(\d{1,9}):(-?\d{1,19}):(\d{1,19}):(\d)", re.ASCII)

# The consumer goes on by itself after these; the topic may also still be to come.
_PASSING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._PARTITION_EOF,
        KafkaError._TRANSPORT,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)


class KafkaSource(Source):
    """Reads an exchange's topics, in groups of its own that commit nothing."""

    def __init__(self, config: KafkaConfig, exchange: str) -> None:
        self._config = config
        self._topics = Topics.of(config.topic_prefix, exchange)

    def follow(self) -> Iterator[Mapping[str, object] | None]:
        """See `Source.follow`.

        :raises BrokerTrouble: no broker at the start, or it refuses the topic.
        :raises RegistryTrouble: the registry does not answer.
        :raises ValueError: a record is not in Confluent's wire format, or not of its schema.
        """
        probe_broker(self._config)
        topic = self._topics.trades
        with (
            contextlib.closing(KnownSchemas(self._config)) as schemas,
            # A tail shows a new topic's trades soon, not after five minutes.
            consuming(
                self._config,
                topic,
                "tail",
                ClientLog(None),
                auto_offset_reset="latest",
                topic_metadata_refresh_interval_ms=2000,
            ) as consumer,
        ):
            consumer.subscribe([topic])
            while True:
                message = consumer.poll(WAIT_S)
                if message is None:
                    yield None
                elif _is_record(message):
                    yield _decode(topic, message.value() or b"", schemas)

    def read(self, kind: str) -> Iterator[StoredRecord]:
        """See `Source.read`. Offsets tell the order in a partition; partitions come mixed.

        :raises BrokerTrouble: no broker, it refuses the topic, or it falls silent.
        :raises RegistryTrouble: the registry does not answer.
        """
        topic = self._topic(kind)
        ranges = self._ranges(topic)
        wanted = {number: r for number, r in ranges.items() if r.low < r.high}
        return self._read(kind, topic, wanted)

    def total(self, kind: str) -> int:
        """See `Source.total`; more than there are where a topic is compacted.

        :raises BrokerTrouble: see `read`.
        """
        return sum(r.high - r.low for r in self._ranges(self._topic(kind)).values())

    def complete_from_start(self, kind: str) -> bool:
        """See `Source.complete_from_start`.

        :raises BrokerTrouble: see `read`.
        """
        return all(r.low == 0 for r in self._ranges(self._topic(kind)).values())

    def _topic(self, kind: str) -> str:
        assert kind in KINDS
        topic: str = getattr(self._topics, kind)
        return topic

    def _ranges(self, topic: str) -> dict[int, Range]:
        """What each partition holds now; empty if there is no such topic."""
        probe_broker(self._config)
        with consuming(self._config, topic, "read", ClientLog(None)) as consumer:
            return held(consumer, topic) or {}

    def _read(self, kind: str, topic: str, ranges: dict[int, Range]) -> Iterator[StoredRecord]:
        if not ranges:
            return
        client_log = ClientLog(None)
        with (
            contextlib.closing(KnownSchemas(self._config, plain)) as schemas,
            consuming(self._config, topic, "read", client_log, **TO_THE_END) as consumer,
        ):
            consumer.assign([TopicPartition(topic, n, r.low) for n, r in ranges.items()])
            left, silent_s = dict(ranges), 0.0
            while left:
                asked_at = time.monotonic()
                messages = consumer.consume(_BATCH, WAIT_S)
                silent_s += time.monotonic() - asked_at
                for message in messages:
                    if _is_wanted(message, left):
                        silent_s = 0.0
                        yield _stored(kind, message, schemas)
                if left:
                    limit_silence(silent_s, topic, client_log)


def _is_record(message: Message) -> bool:
    """Whether it is a record, and not one of the events that pass.

    :raises KafkaException: it is an error that does not.
    """
    error = message.error()
    if error is not None and error.code() not in _PASSING and not error.retriable():
        raise KafkaException(error)
    return error is None


def _is_wanted(message: Message, left: dict[int, Range]) -> bool:
    """Whether it is one of the records that are *left* to read; a partition that is read to its
    end is taken out of these."""
    number, offset, error = message.partition(), message.offset(), message.error()
    if not _is_record(message):
        if number is not None and error is not None and error.code() == KafkaError._PARTITION_EOF:
            left.pop(number, None)
        return False
    if number not in left or offset is None:
        return False
    high = left[number].high
    if offset >= high - 1:
        del left[number]
    return offset < high


def _stored(kind: str, message: Message, schemas: KnownSchemas) -> StoredRecord:
    topic, value, sent_key = message.topic() or "", message.value() or b"", message.key()
    place = f"{topic} partition {message.partition()} offset {message.offset()}"
    key = None if sent_key is None else sent_key.decode(errors="backslashreplace")
    try:
        if kind in ("raw", "dead"):
            record = _from_headers(kind, message, key, value)
        else:
            record = _decode(topic, value, schemas)
    except ValueError as error:
        return StoredRecord(place, None, str(error), key, value)
    return StoredRecord(place, record, "", key, value)


def _decode(topic: str, value: bytes, schemas: KnownSchemas) -> Mapping[str, object]:
    """The record in Confluent's wire format.

    :raises RegistryTrouble: the registry does not answer.
    :raises ValueError: it is something else, or its schema is not to be had.
    """
    if len(value) < _PREFIX_BYTES or value[0]:
        raise ValueError(
            f"topic {topic} holds a record that is not in Confluent's wire format "
            f"(it begins with {value[:8]!r}): another program writes there too"
        )
    number = int.from_bytes(value[1:_PREFIX_BYTES], "big")
    if (schema := schemas.schema(number)) is None:
        raise ValueError(
            f"topic {topic} holds a record of schema {number}, which the registry does not "
            "know as one of Avro"
        )
    return avro.decode_records(schema, value[_PREFIX_BYTES:], 1)[0]


def _from_headers(
    kind: str, message: Message, key: str | None, value: bytes
) -> Mapping[str, object]:
    """A frame, or a dead letter: what its headers tell, and its payload.

    :raises ValueError: a header is missing or malformed.
    """
    headers = dict(message.headers() or ())

    def header(name: str) -> str:
        content = headers.get(name)
        if content is None:
            raise ValueError(f"its header {name} is missing")
        return content.decode() if isinstance(content, bytes) else content

    frame = header("frame")
    match = _FRAME.fullmatch(frame)
    if match is None or int(match[4]) >= len(ORIGINS):
        raise ValueError(
            f"its header frame is {frame[:100]!r}, not connection:sequence:received_ns:origin"
        )
    place: dict[str, object] = {
        "connection": int(match[1]),
        "sequence": int(match[2]),
        "received_ns": int(match[3]),
    }
    if kind == "raw":
        return {**place, "origin": int(match[4]), "payload": value}
    return {
        **place,
        "symbol": key,
        "stage": header("stage"),
        "reason": header("reason"),
        "payload": value,
    }
