"""What there is to store in, and the parts of each: the one place that knows both by name.

Whoever stores, reads back or tries a sink asks here. Each part is imported only where it is used:
nobody pays for the other sink.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from feedmono.config import Config
from feedmono.log import Log
from feedmono.sinks.base import Sink, Source

if TYPE_CHECKING:
    # Which imports what validates records: not for workers.
    from feedmono.sinks.newest import Newest


class Marks(Protocol):
    """What the ledger remembers of the sinks of its exchange."""

    def mark_of(self, place: str) -> Mapping[str, int] | None:
        """The last `Sink.mark` at that place; None if it is not known."""

    def marks_besides(self, place: str) -> Sequence[Mapping[str, int]]:
        """Those of other places."""


class Kind(ABC):
    """One kind of sink, to the rest of the program."""

    keyed: bool
    """Whether a stored frame has a key, the symbol of its first trade."""

    @abstractmethod
    def sink(
        self, config: Config, exchange: str, marks: Marks, dead_letters: Path, log: Log
    ) -> Sink:
        """Not opened yet.

        :param dead_letters: the folder for whole copies of what can't be stored.
        """

    @abstractmethod
    def source(self, config: Config, exchange: str) -> Source:
        """Reads all that is stored."""

    @abstractmethod
    def newest(self, config: Config, exchange: str) -> Newest:
        """Reads what was stored lately."""

    @abstractmethod
    def settings(self, config: Config) -> object:
        """What the sink works by: with another one, it is another sink."""

    @abstractmethod
    def troubles(self) -> tuple[type[Exception], ...]:
        """What its source may raise beside `OSError`."""

    def probes(self, config: Config) -> Mapping[str, Callable[[], str]]:
        """Tries of what it needs, by name: each tells what it found, or raises."""
        return {}

    def folders(self, config: Config) -> Mapping[str, Path]:
        """Whose disks it fills, by the configuration's keys."""
        return {}

    def lacks(self, config: Config, exchange: str) -> str:
        """Why there is nothing to read; empty if there is, or that can't be told."""
        return ""


class _Files(Kind):
    keyed = False

    def sink(
        self, config: Config, exchange: str, marks: Marks, dead_letters: Path, log: Log
    ) -> Sink:
        from feedmono.sinks.files import FilesSink, place_of  # noqa: PLC0415

        place = place_of(config.files, exchange)
        mark, others = marks.mark_of(place), marks.marks_besides(place)
        return FilesSink(config.files, exchange, mark=mark, others=others)

    def source(self, config: Config, exchange: str) -> Source:
        from feedmono.sinks.files_source import FilesSource  # noqa: PLC0415

        return FilesSource(config.files, exchange)

    def newest(self, config: Config, exchange: str) -> Newest:
        from feedmono.sinks.files_newest import FilesNewest  # noqa: PLC0415

        return FilesNewest(config.files, exchange)

    def settings(self, config: Config) -> object:
        return config.files

    def troubles(self) -> tuple[type[Exception], ...]:
        return ()

    def folders(self, config: Config) -> Mapping[str, Path]:
        return {"files.dir": config.files.dir}

    def lacks(self, config: Config, exchange: str) -> str:
        folder = config.files.dir / exchange
        return "" if folder.is_dir() else f"there is no folder {folder}: see files.dir"


class _Kafka(Kind):
    keyed = True

    def sink(
        self, config: Config, exchange: str, marks: Marks, dead_letters: Path, log: Log
    ) -> Sink:
        from feedmono.sinks.kafka import KafkaSink  # noqa: PLC0415

        # The reader has lingered already; librdkafka gets what it needs to fill a batch.
        linger_s = min(config.linger_s, 0.001)
        return KafkaSink(config.kafka, exchange, linger_s=linger_s, dead_dir=dead_letters, log=log)

    def source(self, config: Config, exchange: str) -> Source:
        from feedmono.sinks.kafka_source import KafkaSource  # noqa: PLC0415

        return KafkaSource(config.kafka, exchange)

    def newest(self, config: Config, exchange: str) -> Newest:
        from feedmono.sinks.kafka_newest import KafkaNewest  # noqa: PLC0415

        return KafkaNewest(config.kafka, exchange)

    def settings(self, config: Config) -> object:
        return config.kafka

    def troubles(self) -> tuple[type[Exception], ...]:
        from feedmono.sinks.kafka_client import BrokerTrouble  # noqa: PLC0415
        from feedmono.sinks.registry import RegistryTrouble  # noqa: PLC0415

        return BrokerTrouble, RegistryTrouble

    def probes(self, config: Config) -> Mapping[str, Callable[[], str]]:
        from feedmono.sinks.kafka_topics import probe_broker  # noqa: PLC0415
        from feedmono.sinks.registry import probe_registry  # noqa: PLC0415

        return {
            "broker": partial(probe_broker, config.kafka),
            "registry": partial(probe_registry, config.kafka),
        }


KINDS: Mapping[str, Kind] = {"files": _Files(), "kafka": _Kafka()}
"""By the names that the configuration's key ``sink`` knows."""


def configured(config: Config) -> Kind:
    """The one that the configuration chooses."""
    return KINDS[config.sink]
