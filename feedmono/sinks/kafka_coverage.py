"""Coverage on its way to its compacted topic, without any trade ever waiting for it.

It has a producer of its own: what happens to a message here (no leader, no permission, a fatal
error) holds up no flush, no resend and no acknowledgement of entries. Of a symbol one message is
under way at most, so that the newest is the last; what comes meanwhile replaces what waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Report

from feedmono.config import KafkaConfig
from feedmono.log import Log
from feedmono.sinks.base import Coverage, SinkStats
from feedmono.sinks.coverage import CoverageEncoder
from feedmono.sinks.kafka_client import ClientLog, describe, properties
from feedmono.sinks.kafka_resend import NEVER_STORABLE, NO_TOPIC
from feedmono.sinks.kafka_topics import Creation

RETRY_S = 5.0
_MESSAGE_TIMEOUT_MS = 30_000
_MISSING_TOPIC_MS = 5000
_QUEUE_MESSAGES = 10_000
_QUEUE_KBYTES = 4096
_CLOSE_STEP_S = 0.05


class CoverageTopic:
    """The newest coverage of each symbol, produced as soon as that works."""

    def __init__(
        self,
        config: KafkaConfig,
        exchange: str,
        topic: str,
        prefix: bytes,
        new_creation: Callable[[set[str]], Creation],
        stats: SinkStats,
        log: Log,
    ) -> None:
        """:param prefix: what stands before the Avro encoding.
        :param new_creation: asks for topics that are missing."""
        self._config = config
        self._exchange = exchange
        self._topic = topic
        self._prefix = prefix
        self._new_creation = new_creation
        self._stats = stats
        self._log = log
        self._encode = CoverageEncoder(exchange).encode
        self._producer: Producer | None = None
        self._creation: Creation | None = None
        self._waiting: dict[str, Coverage] = {}
        self._under_way: dict[str, Coverage] = {}
        self._not_before = 0.0
        self._told: set[str] = set()

    def take(self, coverages: Sequence[Coverage]) -> None:
        """Keeps the newest of each symbol until it is stored."""
        self._waiting.update((coverage.symbol, coverage) for coverage in coverages)
        self.step()

    def step(self, timeout_s: float = 0.0) -> None:
        """Does what can be done in about *timeout_s*. Raises nothing: trouble is logged and
        counted once a kind, and what failed is tried again after a pause."""
        try:
            if self._producer is not None:
                self._producer.poll(timeout_s)
            if self._waiting and time.monotonic() >= self._not_before:
                self._send()
        except Exception as error:  # a fatal error can come out of librdkafka as a SystemError
            self._begin_anew(error)

    def close(self, deadline: float) -> None:
        """Tries once to store what waits, until *deadline* (by `time.monotonic`)."""
        self._not_before = 0.0
        self.step()
        while self._under_way and (left_s := deadline - time.monotonic()) > 0:
            self.step(min(left_s, _CLOSE_STEP_S))
        if symbols := sorted(self._waiting.keys() | self._under_way.keys()):
            self._log.warning("closed with coverage that is not stored", symbols=symbols)
        self._producer = None

    def _send(self) -> None:
        if self._producer is None:
            self._producer = self._new_producer()
        for symbol in [symbol for symbol in self._waiting if symbol not in self._under_way]:
            coverage = self._waiting.pop(symbol)
            report = partial(self._reported, coverage)
            value = self._prefix + self._encode(coverage)
            try:
                self._producer.produce(self._topic, value, symbol, -1, report)
            except BufferError:
                self._waiting[symbol] = coverage
                return
            except KafkaException as error:
                self._failed(coverage, error.args[0])
            else:
                self._under_way[symbol] = coverage

    def _new_producer(self) -> Producer:
        own: dict[str, str | int | bool] = {
            "acks": "all",
            "compression_type": "lz4",
            "message_timeout_ms": _MESSAGE_TIMEOUT_MS,
            "partitioner": "murmur2_random",
            "linger_ms": 0,
            # One that is refused for good takes no other along.
            "batch_num_messages": 1,
            "topic_metadata_propagation_max_ms": _MISSING_TOPIC_MS,
            "queue_buffering_max_messages": _QUEUE_MESSAGES,
            "queue_buffering_max_kbytes": _QUEUE_KBYTES,
        }
        # Outages are told by the producer of the entries.
        client_log = ClientLog(None)
        client_id = f"feedmono-{self._exchange}-coverage"
        return Producer(properties(self._config, client_id, client_log, **own))

    def _reported(self, coverage: Coverage, error: KafkaError | None, _: Report) -> None:
        """The delivery callback."""
        self._under_way.pop(coverage.symbol, None)
        if error is None:
            self._told.clear()
        else:
            self._failed(coverage, error)

    def _failed(self, coverage: Coverage, error: KafkaError) -> None:
        code = error.code()
        self._tell(error.name(), describe(error))
        if code in NO_TOPIC and (self._creation is None or self._creation.done):
            self._creation = self._new_creation({self._topic})
        # Of a size that is refused a newer one may be smaller; a newer one counts in any case.
        if code not in NEVER_STORABLE:
            self._waiting.setdefault(coverage.symbol, coverage)

    def _tell(self, kind: str, reason: str) -> None:
        self._not_before = time.monotonic() + RETRY_S
        if kind not in self._told:
            self._told.add(kind)
            self._stats.failures["coverage"] += 1
            self._log.warning("coverage not stored", topic=self._topic, reason=reason)

    def _begin_anew(self, error: Exception) -> None:
        """Gives up the producer with what it holds; the next try makes another one."""
        self._tell(type(error).__name__, describe(error))
        self._producer = None
        self._waiting = {**self._under_way, **self._waiting}
        self._under_way.clear()
