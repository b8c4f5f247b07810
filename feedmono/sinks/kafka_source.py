"""Follows the normalized trades of an exchange's topic, as any consumer would read them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException

from feedmono import avro
from feedmono.config import KafkaConfig
from feedmono.sinks.base import Source
from feedmono.sinks.kafka_client import BrokerTrouble, ClientLog, describe, properties
from feedmono.sinks.kafka_topics import Topics, probe_broker
from feedmono.sinks.registry import SchemaRegistry

_WAIT_S = 0.5
_PREFIX_BYTES = 5
_MAX_SCHEMAS = 100

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
    """Reads the trades' topic from its end on, in a group of its own that commits nothing."""

    def __init__(self, config: KafkaConfig, exchange: str) -> None:
        self._config = config
        self._topic = Topics.of(config.topic_prefix, exchange).trades
        self._registry: SchemaRegistry | None = None
        self._schemas: dict[int, avro.Schema] = {}

    def follow(self) -> Iterator[Mapping[str, object] | None]:
        """See `Source.follow`.

        :raises BrokerTrouble: no broker at the start, or it refuses the topic.
        :raises RegistryTrouble: the registry does not give a record's schema.
        :raises ValueError: a record is not in Confluent's wire format.
        """
        probe_broker(self._config)
        consumer = Consumer(
            properties(
                self._config,
                "feedmono-tail",
                ClientLog(None),
                group_id=f"feedmono-tail-{uuid.uuid4()}",
                auto_offset_reset="latest",
                enable_auto_commit=False,
                # A tail shows a new topic's trades soon, not after five minutes.
                topic_metadata_refresh_interval_ms=2000,
            )
        )
        try:
            consumer.subscribe([self._topic])
            yield from self._read(consumer)
        except KafkaException as error:
            raise BrokerTrouble(f"can't read topic {self._topic}: {describe(error)}") from error
        finally:
            consumer.close()
            if self._registry is not None:
                self._registry.close()
                self._registry = None

    def _read(self, consumer: Consumer) -> Iterator[Mapping[str, object] | None]:
        while True:
            message = consumer.poll(_WAIT_S)
            if message is None:
                yield None
            elif (error := message.error()) is None:
                yield self._decode(message.value() or b"")
            elif error.code() not in _PASSING and not error.retriable():
                raise KafkaException(error)

    def _decode(self, value: bytes) -> Mapping[str, object]:
        if len(value) < _PREFIX_BYTES or value[0]:
            raise ValueError(
                f"topic {self._topic} holds a record that is not in Confluent's wire format "
                f"(it begins with {value[:8]!r}): another program writes there too"
            )
        number = int.from_bytes(value[1:_PREFIX_BYTES], "big")
        return avro.decode_records(self._schema(number), value[_PREFIX_BYTES:], 1)[0]

    def _schema(self, number: int) -> avro.Schema:
        if (schema := self._schemas.get(number)) is None:
            if self._registry is None:
                self._registry = SchemaRegistry(self._config.schema_registry_url)
            if len(self._schemas) >= _MAX_SCHEMAS:
                self._schemas.clear()
            schema = self._schemas[number] = avro.parse_schema(self._registry.schema(number))
        return schema
