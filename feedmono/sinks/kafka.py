"""The Kafka sink: raw frames, trades, dead letters and coverage to the topics of an exchange.

The producer is idempotent and knows no message timeout: what it holds waits for the broker as
long as it takes, and a full queue is the backpressure. Delivery reports are ordered per
partition only, so entries stand in a queue of their own, and what is acknowledged is the end of
the longest run of complete ones at its head. What fails goes through `Resender`. Coverage takes
a way of its own (`CoverageTopic`), so that no trade ever waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from confluent_kafka import KafkaException, Producer

from feedmono import apart, resources
from feedmono.config import KafkaConfig
from feedmono.log import Log
from feedmono.sinks import kafka_batch, kafka_topics
from feedmono.sinks.base import Coverage, Entry, EntryBatch, Sink, SinkFailed, SinkStats
from feedmono.sinks.kafka_ack import AckWatch
from feedmono.sinks.kafka_batch import PLUGINS, BatchPending, HandOver
from feedmono.sinks.kafka_client import BrokerTrouble, ClientLog, describe, properties
from feedmono.sinks.kafka_coverage import CoverageTopic
from feedmono.sinks.kafka_dead import Copies, DeadLetters
from feedmono.sinks.kafka_message import CallbackPending, Failure, Layout, Outgoing, Pending
from feedmono.sinks.kafka_resend import Resender
from feedmono.sinks.kafka_topics import Creation, Limits, Topics

QUEUE_MESSAGES = 100_000
QUEUE_KBYTES = 64 * 1024
_BATCH_BYTES = 1_000_000
# librdkafka accepts no smaller message.max.bytes.
_LEAST_MESSAGE_BYTES = 1000
# A topic that is missing fails its messages after this time (30 s by default), and is then
# created again; until then they wait in the producer.
_MISSING_TOPIC_MS = 5000
# Some requests, each of which has a shorter limit of its own.
_REGISTRY_LIMIT_S = 30.0
_FLUSH_S = 0.05
_CLOSE_S = 2.0
_STALLED_S = 5.0
# Who has room in its window can wait for acknowledgements: each look costs a wake-up, and what
# comes meanwhile looks as well.
_POLL_S = 0.05
_POLL_STALLED_S = 0.1
_IDLE_S = 1.0


class KafkaSink(Sink):
    """Stores an exchange's entries and coverage in its topics; see `Sink` for the promises."""

    def __init__(
        self, config: KafkaConfig, exchange: str, *, linger_s: float, dead_dir: Path, log: Log
    ) -> None:
        """:param linger_s: how long a message may wait for company in its batch.
        :param dead_dir: the folder for whole copies of dead letters."""
        # Of the dead letters it counts those that it made itself: the others were known before.
        self.stats = SinkStats()
        self.refused: list[tuple[int, int]] = []
        self.stored: deque[tuple[int, int]] = deque()
        self._config = config
        self._exchange = exchange
        self._linger_s = linger_s
        self._dead_dir = dead_dir
        self._log = log
        self._client_log = ClientLog(log, self._count_error)
        self._topics = Topics.of(config.topic_prefix, exchange)
        self._prefixes: tuple[bytes, bytes] | None = None
        self._limits: Limits | None = None
        self._not_open = "not opened yet"
        self._producer: Producer | None = None
        self._hand_over: HandOver | None = None
        """The way of batches, where there is one."""
        # Made by `open`, together with the producer.
        self._layout: Layout
        self._dead_letters: DeadLetters
        self._resender: Resender
        self._coverage: CoverageTopic

        self._pendings: deque[Pending] = deque()
        self._watch = AckWatch()
        self._handed = 0
        """How many messages of the entry that comes next are handed over already,"""
        self._rest: deque[Outgoing] | None = None
        """and those that are not, once it was taken in hand."""
        self._acknowledged: int | None = None
        self._moved_at = time.monotonic()

    def _count_error(self) -> None:
        self.stats.failures["broker"] += 1

    # Opening

    def open(self) -> bool:
        """See `Sink.open`. Registers the schemas and creates missing topics before the producer
        is made: without both, nothing is produced."""
        problems = []
        if self._prefixes is None:
            try:
                self._prefixes = self._register()
            except apart.Failed as error:
                problems.append(str(error))
        if self._limits is None:
            try:
                self._limits = kafka_topics.prepare(self._config, self._topics, self._log)
            except BrokerTrouble as error:
                problems.append(str(error))
            except KafkaException as error:
                raise SinkFailed(f"kafka.properties: {describe(error)}") from error
        if self._prefixes is None or self._limits is None:
            self._not_open = "; ".join(problems)
            self.stats.failures["broker"] += len(problems)
            return False
        self._start(*self._prefixes, self._limits)
        return True

    def _register(self) -> tuple[bytes, bytes]:
        """What stands before a trade's and a coverage's Avro encoding."""
        url, topics = self._config.schema_registry_url, self._topics
        schemas = {topics.trades: "trade", topics.coverage: "coverage"}
        ids = partial(_register_schemas, url, schemas, self._log)
        trades, coverage = apart.call("schema registry", ids, _REGISTRY_LIMIT_S)
        return _prefix(trades), _prefix(coverage)

    def _start(self, trade_prefix: bytes, coverage_prefix: bytes, limits: Limits) -> None:
        topics = self._topics
        self._layout = Layout(topics.raw, topics.trades, trade_prefix)
        copies = Copies(self._dead_dir, self._exchange, self._log)
        self._dead_letters = DeadLetters(topics.dead, limits.dead, copies)
        self._resender = Resender(
            self._layout,
            self._dead_letters,
            lambda: self._new_producer(limits, alone=True),
            self._new_creation,
            self.stats,
            self.refused,
            self._log,
        )
        self._coverage = CoverageTopic(
            self._config,
            self._exchange,
            topics.coverage,
            coverage_prefix,
            self._new_creation,
            self.stats,
            self._log,
        )
        self._make_producer(limits)

    def _make_producer(self, limits: Limits) -> None:
        """The producer, with a way for batches if it takes the plugin for it."""
        if plugin := kafka_batch.plugin():
            try:
                self._producer = self._new_producer(limits, plugin=plugin)
                self._hand_over = HandOver(self._layout)
            except (SinkFailed, RuntimeError) as error:
                # Without the plugin it will show whether anything else is wrong.
                self._log.warning("messages are handed over one by one", reason=str(error))
            else:
                return
        self._producer = self._new_producer(limits)

    def _new_producer(self, limits: Limits, alone: bool = False, plugin: str = "") -> Producer:
        own: dict[str, str | float | bool] = {
            "enable_idempotence": True,
            "acks": "all",
            "compression_type": "lz4",
            "message_timeout_ms": 0,
            "partitioner": "murmur2_random",
            "linger_ms": 0.0 if alone else self._linger_s * 1000,
            # One batch above a topic's limit fails all its messages.
            "batch_size": min(_BATCH_BYTES, min(limits) * 9 // 10),
            "message_max_bytes": max(_LEAST_MESSAGE_BYTES, *limits),
            "queue_buffering_max_messages": QUEUE_MESSAGES,
            "queue_buffering_max_kbytes": QUEUE_KBYTES,
            "topic_metadata_propagation_max_ms": _MISSING_TOPIC_MS,
        }
        client_id = f"feedmono-{self._exchange}" + ("-alone" if alone else "")
        config = properties(self._config, client_id, self._client_log, **own)
        if alone:
            config["batch.num.messages"] = 1
        if plugin:
            config[PLUGINS] = ";".join(filter(None, (config.get(PLUGINS), plugin)))
        try:
            return Producer(config)
        except KafkaException as error:
            raise SinkFailed(f"kafka.properties: {describe(error)}") from error

    def _new_creation(self, missing: set[str]) -> Creation:
        admin = kafka_topics.admin_client(self._config, ClientLog(self._log))
        return Creation(admin, self._config, self._topics, missing)

    # Writing

    def write(self, entries: Sequence[Entry]) -> int:
        """See `Sink.write`. Takes none while something that failed is not settled."""
        if self._producer is None or self._resender.active:
            return 0
        taken = 0
        while taken < len(entries):
            if self._rest is None:
                if self._hand_over is not None and kafka_batch.is_batch(entries):
                    taken += self._take_batch(self._hand_over, entries, taken)
                else:
                    taken += self._take(entries[taken:])
                if taken == len(entries):
                    break
            if not self._take_carefully(entries[taken]):
                break
            taken += 1
            if self._resender.failures:
                break
        return taken

    def _take_batch(self, hand_over: HandOver, batch: EntryBatch, at: int) -> int:
        """As `_take`, from that entry of a batch on."""
        taken, self._handed, pending = hand_over.write(batch, at)
        self._pendings.append(pending)
        return taken

    def _take(self, entries: Sequence[Entry]) -> int:
        """Hands entries to librdkafka, up to the first one that needs care: how many. What of
        that one was handed over is in ``_handed``."""
        # By position and through local names: this is the hot path.
        assert self._producer is not None
        pending = CallbackPending(self._resender.failures)
        produce, delivered = self._producer.produce, pending.delivered
        raw_topic, topic, prefix = self._layout
        taken = handed = messages = 0
        try:
            for _, frame, key, trades, dead in entries:
                handed = 0
                if dead is not None:
                    break
                if key is not None:
                    payload, connection, sequence, received_ns, origin = frame
                    tag = f"{connection}:{sequence}:{received_ns}:{origin}"
                    produce(raw_topic, payload, key, -1, delivered, None, 0, [("frame", tag)])
                    handed = 1
                for symbol, body in trades:
                    produce(topic, prefix + body, symbol, -1, delivered)
                    handed += 1
                messages += handed
                taken += 1
        except (BufferError, KafkaException):
            messages += handed
            self._handed = handed
        pending.left, pending.handed_ns = messages, time.time_ns()
        pending.entries = entries[: taken + 1]
        pending.end = entries[taken - 1].end if taken else None
        self._pendings.append(pending)
        return taken

    def _take_carefully(self, entry: Entry) -> bool:
        """Hands over one entry, or the rest of it; False: librdkafka's queue is full, and the same
        entry is to be offered again."""
        if self._rest is None:
            self._rest = self._rest_of(entry)
        rest = self._rest
        while rest:
            assert rest[0].entry.end == entry.end, "entries are offered again in their order"
            try:
                self._produce(rest[0])
            except BufferError:
                return False
            rest.popleft()
        self._rest = None
        return True

    def _rest_of(self, entry: Entry) -> deque[Outgoing]:
        """The messages of an entry but those that ``_take`` has handed over, waited for together
        from now on."""
        pending = CallbackPending(self._resender.failures)
        pending.entries = (entry,)
        pending.end = entry.end
        rest = deque(self._layout.messages(pending, entry))
        if entry.dead is not None:
            place = Outgoing(pending, entry, len(rest) + 1, "", b"", None)
            rest.append(self._dead_letters.letter(place, entry.dead, entry.frame.payload))
        for _ in range(self._handed):
            rest.popleft()
        self._handed = 0
        pending.left, pending.handed_ns = len(rest), time.time_ns()
        self._pendings.append(pending)
        return rest

    def _produce(self, message: Outgoing) -> None:
        """Produces one message; what librdkafka refuses at once is noted as failed.

        :raises BufferError: the queue is full.
        """
        assert self._producer is not None
        report = partial(self._resender.reported, message)
        try:
            self._producer.produce(
                message.topic, message.value, message.key, -1, report, None, 0, message.headers
            )
        except KafkaException as error:
            # It never met another message in a batch.
            failure = Failure(error.args[0], message.pending, message, alone=True)
            self._resender.failures.append(failure)

    # Acknowledging

    def poll(self, timeout_s: float) -> int | None:
        """See `Sink.poll`."""
        if self._producer is None:
            return self._acknowledged
        resender, alone = self._resender, self._resender.alone
        try:
            if alone is None or not resender.busy:
                self._producer.poll(timeout_s)
            else:
                self._producer.poll(0)
                alone.poll(timeout_s)
        except Exception as error:
            # A fatal error can come out of librdkafka as a SystemError.
            raise SinkFailed(f"the Kafka producer failed: {describe(error)}") from error
        if self._client_log.fatal:
            raise SinkFailed(f"the Kafka producer failed: {self._client_log.fatal}")
        if self._hand_over is not None and self._hand_over.news_of_failures():
            for pending in self._pendings:
                if isinstance(pending, BatchPending):
                    resender.failures.extend(pending.failures(self._layout))
        if resender.active:
            resender.step(self._producer)
        self._coverage.step()
        return self._advance()

    def _advance(self) -> int | None:
        """Acknowledges the complete entries at the head of the queue."""
        pendings = self._pendings
        waiting = len(pendings)
        now_ns = time.time_ns()
        while pendings and not pendings[0].left:
            pending = pendings.popleft()
            if pending.end is not None:
                self._acknowledged = pending.end
                self.stored.append((pending.end, self._stored_ns(pending, now_ns)))
        self._watch.looked(now_ns)
        if not pendings or len(pendings) < waiting:
            self._moved_at = time.monotonic()
            if self._client_log.last_error:
                self._client_log.forget()
        return self._acknowledged

    def _stored_ns(self, pending: Pending, now_ns: int) -> int:
        if isinstance(pending, BatchPending):
            return pending.stored_ns or now_ns
        assert isinstance(pending, CallbackPending)
        return self._watch.stored_ns(pending, now_ns)

    def flush(self) -> None:
        """See `Sink.flush`."""
        if self._producer is None:
            return
        try:
            # While it flushes, librdkafka sends without lingering.
            self._producer.flush(_FLUSH_S)
        except Exception as error:  # as in `poll`
            raise SinkFailed(f"the Kafka producer failed: {describe(error)}") from error

    def cover(self, coverages: Sequence[Coverage]) -> None:
        """See `Sink.cover`."""
        if self._producer is not None:
            self._coverage.take(coverages)

    def mark(self) -> Mapping[str, int]:
        """Nothing: the broker holds for good what it has acknowledged, and nothing behind it is
        to be taken back."""
        return {}

    def settle(self) -> None:
        """Nothing is left to do, see `mark`."""

    def close(self) -> None:
        """See `Sink.close`. Blocks for two seconds at most while messages are under way."""
        if self._producer is None:
            return
        deadline = time.monotonic() + _CLOSE_S
        try:
            left = self._producer.flush(_CLOSE_S)
        except Exception as error:  # as in `poll`; what is lost with it was not acknowledged
            self._log.warning("the Kafka producer failed at its end", error=describe(error))
        else:
            if left:
                self._log.warning("closed with unacknowledged messages", messages=left)
        self._advance()
        self._coverage.close(deadline)
        if self._hand_over is not None:
            self._hand_over.close()
            self._hand_over = None
        self._producer = self._resender.alone = None

    def wait_s(self) -> float:
        """See `Sink.wait_s`."""
        if not self._pendings:
            return _IDLE_S
        if self._stalled_s > _IDLE_S:
            return _POLL_STALLED_S
        newest = self._pendings[-1]
        if not isinstance(newest, CallbackPending):
            return _POLL_S
        return self._watch.look_s(newest, time.time_ns(), _POLL_S)

    @property
    def _stalled_s(self) -> float:
        """For how long nothing has been acknowledged although something waits."""
        return time.monotonic() - self._moved_at if self._pendings else 0.0

    @property
    def trouble(self) -> str:
        """See `Sink.trouble`."""
        if self._producer is None:
            return self._not_open
        if self._resender.trouble:
            return self._resender.trouble
        if self._stalled_s < _STALLED_S:
            return ""
        reason = self._client_log.last_error or "no reason is known yet"
        return f"the Kafka broker {self._config.bootstrap_servers} acknowledges nothing: {reason}"


def _register_schemas(url: str, schemas: Mapping[str, str], log: Log) -> list[int]:
    """The ids of the schemas, by name, of the topics' values. In a process of its own, since the
    registry's client takes 15 MiB that are of no use any more when the ids are known.

    :raises RegistryTrouble: the registry does not give them.
    """
    from feedmono.sinks.registry import SchemaRegistry  # noqa: PLC0415

    registry = SchemaRegistry(url)
    ids = []
    for topic, name in schemas.items():
        schema = resources.path("schemas", f"{name}.avsc").read_text(encoding="utf-8")
        ids.append(registry.register(f"{topic}-value", schema, log))
    registry.close()
    return ids


def _prefix(schema_id: int) -> bytes:
    """What stands before an Avro encoding."""
    return b"\0" + schema_id.to_bytes(4, "big")
