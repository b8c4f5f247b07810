"""Reads the records of a topic that any program produced: Avro by the schema registry, or JSON."""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from collections.abc import Generator, Iterator
from typing import NamedTuple

import fastavro
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from feedmono import avro
from feedmono.config import KafkaConfig
from feedmono.sinks.kafka_client import (
    REQUESTS_LIMIT_S,
    BrokerTrouble,
    ClientLog,
    describe,
    properties,
)
from feedmono.sinks.kafka_topics import probe_broker
from feedmono.sinks.records import (
    AVRO,
    CHUNK_RECORDS,
    JSON,
    Chunk,
    Records,
    Unreadable,
    decode_json,
    light,
)
from feedmono.sinks.registry import NoSuchSchema, SchemaRegistry

_WAIT_S = 0.5
_PREFIX_BYTES = 5
_MAX_SCHEMAS = 100
_QUEUE_KBYTES = 16 * 1024
_FETCH_BYTES = 8 << 20
# A broker that is restarted comes back within that time.
_SILENT_S = 30.0
_NS_PER_MS = 1_000_000
# The consumer goes on by itself after these.
_PASSING = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT})
_NO_TOPIC = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})


class _Range(NamedTuple):
    """The offsets that a partition holds."""

    low: int
    high: int
    """Behind the last one."""


class TopicRecords(Records):
    """All partitions of a topic, up to where each of them ended when this was made. Reads in a
    group of its own and commits nothing.

    :raises BrokerTrouble: no broker, or no such topic.
    """

    def __init__(self, config: KafkaConfig, topic: str, form: str = "") -> None:
        """:param form: ``avro`` (Confluent's wire format) or ``json``; empty: each as it is."""
        self.name = f"kafka:{topic}"
        self._config = config
        self._topic = topic
        self._form = form
        self._ranges = self._look()

    def total(self) -> int:
        return sum(r.high - r.low for r in self._ranges.values())

    def read(self) -> Iterator[Chunk]:
        """See `Records.read`; a partition is a lane.

        :raises BrokerTrouble: the broker refuses the topic, or falls silent.
        :raises RegistryTrouble: the registry does not answer.
        """
        left = {number: r for number, r in self._ranges.items() if r.low < r.high}
        if not left:
            return
        client_log = ClientLog(None)
        with (
            contextlib.closing(_Decoder(self._config, self._form)) as decoder,
            self._consuming(client_log) as consumer,
        ):
            consumer.assign([TopicPartition(self._topic, n, r.low) for n, r in left.items()])
            silent_s = 0.0
            while left:
                asked_at = time.monotonic()
                messages = consumer.consume(CHUNK_RECORDS, _WAIT_S)
                silent_s = 0.0 if messages else silent_s + time.monotonic() - asked_at
                yield from self._chunks(messages, left, decoder)
                if silent_s > _SILENT_S:
                    reason = client_log.last_error or "no reason is known"
                    raise BrokerTrouble(
                        f"can't read topic {self._topic}: nothing came for {_SILENT_S:g} s: "
                        f"{reason}"
                    )

    def _chunks(
        self, messages: list[Message], left: dict[int, _Range], decoder: _Decoder
    ) -> Iterator[Chunk]:
        """What is wanted of the messages, by partition; takes partitions at their end out of
        *left*."""
        by_lane: dict[int, list[Message]] = {}
        ended = set()
        for message in messages:
            number = message.partition()
            if message.error() is not None:
                # Whatever else is an error may be about no partition at all.
                if _is_end(message) and number is not None:
                    ended.add(number)
            elif number is not None:
                by_lane.setdefault(number, []).append(message)
        for lane, found in by_lane.items():
            if lane not in left:
                continue
            low, high = left[lane]
            wanted = [m for m in found if (m.offset() or 0) < high]
            offsets = [m.offset() or 0 for m in wanted]
            # What compaction or a transaction left out is behind us as well.
            upto = offsets[-1] + 1 if offsets else high
            left[lane] = _Range(upto, high)
            if upto >= high or len(wanted) < len(found):
                ended.add(lane)
            yield Chunk(
                f"{self._topic} partition {lane} offset",
                offsets,
                [decoder.decode(m.value()) for m in wanted],
                upto - low,
                lane,
                [_stamp_ns(m) for m in wanted],
            )
        for lane in ended:
            left.pop(lane, None)

    def _look(self) -> dict[int, _Range]:
        """What each partition holds now."""
        probe_broker(self._config)
        with self._consuming(ClientLog(None)) as consumer:
            metadata = consumer.list_topics(self._topic, REQUESTS_LIMIT_S).topics[self._topic]
            if metadata.error is not None:
                if metadata.error.code() in _NO_TOPIC:
                    raise BrokerTrouble(
                        f"Kafka at {self._config.bootstrap_servers} has no topic {self._topic}"
                    )
                raise KafkaException(metadata.error)
            ranges = {}
            for number in sorted(metadata.partitions):
                place = TopicPartition(self._topic, number)
                ranges[number] = _Range(*consumer.get_watermark_offsets(place, REQUESTS_LIMIT_S))
            return ranges

    @contextlib.contextmanager
    def _consuming(self, client_log: ClientLog) -> Generator[Consumer, None, None]:
        """A consumer; its errors as `BrokerTrouble`."""
        name = "feedmono-compare"
        own: dict[str, str | int | bool] = {
            "group_id": f"{name}-{uuid.uuid4()}",
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            # A transaction's marker, or what compaction removed, may be the last offset.
            "enable_partition_eof": True,
            "queued_max_messages_kbytes": _QUEUE_KBYTES,
            "fetch_max_bytes": _FETCH_BYTES,
        }
        try:
            consumer = Consumer(properties(self._config, name, client_log, **own))
        except KafkaException as error:
            raise BrokerTrouble(f"kafka properties: {describe(error)}") from error
        try:
            yield consumer
        except KafkaException as error:
            raise BrokerTrouble(f"can't read topic {self._topic}: {describe(error)}") from error
        finally:
            consumer.close()


class _Decoder:
    """Values to records; schemas are asked for once each."""

    def __init__(self, config: KafkaConfig, form: str) -> None:
        self._config = config
        self._form = form
        self._registry: SchemaRegistry | None = None
        self._known: dict[int, avro.Schema | None] = {}

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def decode(self, value: bytes | None) -> object:
        """The record, or `Unreadable`. :raises RegistryTrouble: the registry does not answer."""
        if not value:
            return Unreadable("it has no value")
        framed = len(value) > _PREFIX_BYTES and value[0] == 0
        if self._form == JSON or (not framed and self._form != AVRO):
            # Confluent's JSON serializers put a schema's id in front as well.
            return _json(value[_PREFIX_BYTES:] if framed else value)
        if not framed:
            return Unreadable(f"it is not in Confluent's wire format, it begins with {value[:8]!r}")
        number = int.from_bytes(value[1:_PREFIX_BYTES], "big")
        if (schema := self._schema(number)) is None:
            return Unreadable(f"the registry does not know its schema {number} as one of Avro")
        stream = io.BytesIO(value)
        stream.seek(_PREFIX_BYTES)
        try:
            return fastavro.schemaless_reader(stream, schema, None)
        except Exception as error:  # on damaged bytes fastavro raises whatever it stumbles over
            return Unreadable(f"it is not of its schema {number}: {error!r}"[:300])

    def _schema(self, number: int) -> avro.Schema | None:
        if number not in self._known:
            if self._registry is None:
                self._registry = SchemaRegistry(self._config.schema_registry_url)
            if len(self._known) >= _MAX_SCHEMAS:
                self._known.clear()
            try:
                self._known[number] = light(avro.parse_schema(self._registry.schema(number)))
            except (NoSuchSchema, avro.SchemaError):
                self._known[number] = None
        return self._known[number]


def _json(value: bytes) -> object:
    try:
        return decode_json(value)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        return Unreadable(f"it is no JSON: {error}"[:300])


def _stamp_ns(message: Message) -> int | None:
    kind, stamp_ms = message.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else stamp_ms * _NS_PER_MS


def _is_end(message: Message) -> bool:
    """Whether it tells that its partition is read. :raises KafkaException: it is an error."""
    error = message.error()
    assert error is not None
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    if error.code() in _PASSING or error.retriable():
        return False
    raise KafkaException(error)
