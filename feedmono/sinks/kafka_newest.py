"""The newest records of an exchange's topics, from the offsets that the broker has for a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from feedmono.avro import Schema, SchemaError, parse_schema
from feedmono.config import KafkaConfig
from feedmono.sinks.base import StoredRecord
from feedmono.sinks.kafka_client import REQUESTS_LIMIT_S, ClientLog
from feedmono.sinks.kafka_consumer import Range, consuming
from feedmono.sinks.kafka_source import KafkaSource
from feedmono.sinks.kafka_topics import Topics
from feedmono.sinks.newest import Newest
from feedmono.sinks.plain import plain
from feedmono.sinks.registry import RegistryTrouble, SchemaRegistry

# A record is stamped when it is handed to the producer, a moment after it was normalized.
_LATER_S = 2.0


class KafkaNewest(Newest):
    """See `Newest`. Each record is decoded with the schema whose id it carries."""

    def __init__(self, config: KafkaConfig, exchange: str) -> None:
        self._config = config
        self._subject = f"{Topics.of(config.topic_prefix, exchange).trades}-value"
        self._source = _Source(config, exchange)

    def schemas(self) -> Mapping[str, Schema]:
        """See `Newest.schemas`: the latest of the topic's subject in the registry.

        :raises RegistryTrouble: no answer, or no such subject.
        """
        with contextlib.closing(_Registry(self._config.schema_registry_url)) as registry:
            version, text = registry.latest(self._subject)
        name = f"{self._subject} version {version}"
        try:
            return {name: plain(parse_schema(text))}
        except SchemaError as error:
            raise RegistryTrouble(f"{name}: {error}") from error

    def read(self, kind: str, since_s: float, until_s: float, limit: int) -> Iterator[StoredRecord]:
        """See `Newest.read`.

        :raises BrokerTrouble: no broker, it refuses the topic, or it falls silent.
        :raises RegistryTrouble: the registry does not answer.
        """
        return self._source.read_newest(kind, since_s, until_s, limit)


class _Source(KafkaSource):
    def read_newest(
        self, kind: str, since_s: float, until_s: float, limit: int
    ) -> Iterator[StoredRecord]:
        topic = self._topic(kind)
        ranges = self._ranges(topic)
        if not ranges:
            return
        with consuming(self._config, topic, "report", ClientLog(None)) as consumer:
            first = _offsets(consumer, topic, ranges, since_s)
            behind = _offsets(consumer, topic, ranges, until_s + _LATER_S)
        asked = {
            number: held._replace(low=first[number], high=behind[number])
            for number, held in ranges.items()
            if first[number] < behind[number]
        }
        yield from self._read(kind, topic, _newest(asked, limit))


class _Registry(SchemaRegistry):
    def latest(self, subject: str) -> tuple[int, str]:
        """The subject's latest version and its schema's text. :raises RegistryTrouble: none."""
        with self._asking(f"gives no schema for {subject}"):
            found = self._client.get_latest_version(subject)
            version, text = found.version, found.schema.schema_str
        if version is None or text is None:
            raise RegistryTrouble(f"schema registry {self.name} gives no schema for {subject}")
        return version, text


def _offsets(
    consumer: Consumer, topic: str, ranges: Mapping[int, Range], at_s: float
) -> dict[int, int]:
    """Of each partition, the offset of the first record from that time on; its end if there is
    none."""
    places = [TopicPartition(topic, number, max(0, int(at_s * 1000))) for number in ranges]
    found = consumer.offsets_for_times(places, REQUESTS_LIMIT_S)
    return {
        place.partition: ranges[place.partition].high
        if place.offset in (OFFSET_END, -1)
        else min(place.offset, ranges[place.partition].high)
        for place in found
    }


def _newest(ranges: Mapping[int, Range], limit: int) -> dict[int, Range]:
    """About the last *limit* records, not fewer, from each partition in proportion."""
    total = sum(r.high - r.low for r in ranges.values())
    if total <= limit:
        return dict(ranges)
    return {
        number: r._replace(low=r.high + (r.low - r.high) * limit // total)
        for number, r in ranges.items()
    }
