"""Where the two arguments of ``feedmono compare`` lead: files, a topic, or a file that describes
either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from feedmono.compare import mapping as compare_mapping
from feedmono.compare.mapping import FEEDMONO, Described, TradeMapping
from feedmono.config import KafkaConfig
from feedmono.sinks.records import FileRecords, Records

_TOPIC = "kafka:"
_DESCRIPTION = ".conf"


@dataclass(frozen=True, slots=True)
class Origin:
    """A source that is not opened yet."""

    name: str
    """The argument as it was given."""
    path: Path | None
    topic: str
    """Read if there is no path."""
    form: str
    kafka: KafkaConfig
    mapping: TradeMapping

    def open(self) -> Records:
        """What it holds now.

        :raises OSError: the files can't be read.
        :raises BrokerTrouble: the topic can't be read.
        """
        if self.path is not None:
            return FileRecords(self.path, self.form)
        from feedmono.sinks.topic_records import TopicRecords  # noqa: PLC0415

        return TopicRecords(self.kafka, self.topic, self.form)


def resolve(argument: str, kafka: KafkaConfig, environ: Mapping[str, str]) -> Origin:
    """Where an argument leads: ``kafka:TOPIC``, ``….conf``, or a path.

    :param kafka: the broker and the registry, unless a description names its own.
    :raises ValueError: it leads nowhere.
    :raises ConfigError: a description is not right.
    """
    if argument.startswith(_TOPIC):
        topic = argument.removeprefix(_TOPIC)
        if not topic:
            raise ValueError(f"{argument!r} names no topic: {_TOPIC}TOPIC is expected")
        return Origin(argument, None, topic, "", kafka, FEEDMONO)
    if not argument:
        raise ValueError("an empty argument: a path or kafka:TOPIC is expected")
    if argument.endswith(_DESCRIPTION):
        told = compare_mapping.load(Path(argument), environ)
        return Origin(
            argument, told.path, told.topic or "", told.form, _kafka(told, kafka), told.mapping
        )
    return Origin(argument, Path(argument), "", "", kafka, FEEDMONO)


def _kafka(told: Described, kafka: KafkaConfig) -> KafkaConfig:
    return replace(
        kafka,
        bootstrap_servers=told.bootstrap_servers or kafka.bootstrap_servers,
        schema_registry_url=told.schema_registry_url or kafka.schema_registry_url,
        properties=kafka.properties if told.properties is None else told.properties,
    )
