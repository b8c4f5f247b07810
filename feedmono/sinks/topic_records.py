"""Reads the records of a topic that any program produced: Avro by the schema registry, or JSON."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator

import fastavro
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from feedmono.config import KafkaConfig
from feedmono.sinks.kafka_client import BrokerTrouble, ClientLog
from feedmono.sinks.kafka_consumer import TO_THE_END, WAIT_S, Range, consuming, held, limit_silence
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
from feedmono.sinks.registry import KnownSchemas

_PREFIX_BYTES = 5
_NS_PER_MS = 1_000_000
# The consumer goes on by itself after these.
_PASSING = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT})


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
                messages = consumer.consume(CHUNK_RECORDS, WAIT_S)
                silent_s = 0.0 if messages else silent_s + time.monotonic() - asked_at
                yield from self._chunks(messages, left, decoder)
                limit_silence(silent_s, self._topic, client_log)

    def _chunks(
        self, messages: list[Message], left: dict[int, Range], decoder: _Decoder
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
            left[lane] = Range(upto, high)
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

    def _look(self) -> dict[int, Range]:
        """What each partition holds now."""
        probe_broker(self._config)
        with self._consuming(ClientLog(None)) as consumer:
            ranges = held(consumer, self._topic)
        if ranges is None:
            raise BrokerTrouble(
                f"Kafka at {self._config.bootstrap_servers} has no topic {self._topic}"
            )
        return ranges

    def _consuming(self, client_log: ClientLog) -> contextlib.AbstractContextManager[Consumer]:
        # A description of the topic may name properties of its own.
        return consuming(
            self._config, self._topic, "compare", client_log, "kafka properties", **TO_THE_END
        )


class _Decoder:
    """Values to records."""

    def __init__(self, config: KafkaConfig, form: str) -> None:
        self._form = form
        self._schemas = KnownSchemas(config, light)

    def close(self) -> None:
        self._schemas.close()

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
        if (schema := self._schemas.schema(number)) is None:
            return Unreadable(f"the registry does not know its schema {number} as one of Avro")
        stream = io.BytesIO(value)
        stream.seek(_PREFIX_BYTES)
        try:
            return fastavro.schemaless_reader(stream, schema, None)
        except Exception as error:  # on damaged bytes fastavro raises whatever it stumbles over
            return Unreadable(f"it is not of its schema {number}: {error!r}"[:300])


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
