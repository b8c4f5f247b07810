"""Sends again what Kafka did not store, until it is stored or known to be unstorable.

Failures come out of delivery callbacks. While there are any, no new entries are taken; what
failed is collected, and sent again in rounds:

- What an operator can heal (no topic, no permission, a policy, no leader …) waits, 1 s at first,
  30 s at most between rounds, for ever. Topics that vanished are asked for again each time.
- What can never be stored (too large, invalid) fails its whole batch. After such a failure the
  round goes through a second producer whose batches hold one message, so that it fails alone
  and its batch-mates arrive; what fails alone becomes a dead letter.
- After a fatal error the producer is of no more use: `SinkFailed`.

A round is in the original order, and waits until librdkafka has told the fate of everything
else it holds (ten seconds at most: one partition without a leader must not hold up the rest).
What was behind a failed message in librdkafka's queues may still be stored before it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Report

from feedmono.log import Log
from feedmono.sinks.base import SinkFailed, SinkStats
from feedmono.sinks.kafka_client import describe
from feedmono.sinks.kafka_dead import DeadLetters
from feedmono.sinks.kafka_message import Failure, Layout, Outgoing
from feedmono.sinks.kafka_topics import Creation

FIRST_BACKOFF_S = 1.0
BACKOFF_CAP_S = 30.0
DRAIN_LIMIT_S = 10.0

NEVER_STORABLE = frozenset(
    {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD}
)
_TOO_LARGE = NEVER_STORABLE - {KafkaError.INVALID_RECORD}
_FATAL = frozenset(
    {
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
    }
)
NO_TOPIC = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
# Known to heal: they wait without a line in the log for each.
_HEALABLE = NO_TOPIC | {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._AUTHENTICATION,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._SSL,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    # Our clock is ahead of the broker's: each round has the time of its own.
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.POLICY_VIOLATION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}


def is_fatal(error: KafkaError) -> bool:
    """Whether the producer is of no more use after *error*."""
    return error.fatal() or error.code() in _FATAL


class Resender:
    """What failed, and the rounds in which it is sent again."""

    def __init__(
        self,
        layout: Layout,
        dead_letters: DeadLetters,
        new_alone: Callable[[], Producer],
        new_creation: Callable[[set[str]], Creation],
        stats: SinkStats,
        refused: list[tuple[int, int]],
        log: Log,
    ) -> None:
        """:param new_alone: makes the producer whose batches hold one message.
        :param new_creation: asks for topics that are missing.
        :param refused: where trades go that become dead letters, see `Sink.refused`."""
        self.failures: list[Failure] = []
        """Filled by delivery callbacks."""
        self._layout = layout
        self._dead_letters = dead_letters
        self._new_alone = new_alone
        self._new_creation = new_creation
        self._stats = stats
        self._refused = refused
        self._log = log
        self.alone: Producer | None = None
        """The producer of single messages, once there was need of it."""
        self._waiting: list[Outgoing] = []
        self._to_send: deque[Outgoing] = deque()
        self._under_way = 0
        self._through_alone = False
        self._reset()

    def _reset(self) -> None:
        self._settled = True
        self.trouble = ""
        self._backoff_s = FIRST_BACKOFF_S
        self._next_round()

    def _next_round(self) -> None:
        """Forgets what the last round's failures asked for."""
        self._poisoned = False
        self._missing: set[str] = set()
        self._creation: Creation | None = None
        self._not_before = 0.0
        self._drain_until = 0.0

    @property
    def active(self) -> bool:
        """Whether anything failed that is not stored yet."""
        return bool(self.failures) or not self._settled

    @property
    def busy(self) -> bool:
        """Whether a round is under way, rather than waited for."""
        return bool(self._to_send or self._under_way)

    def step(self, producer: Producer) -> None:
        """Does what can be done without waiting. Call it while `active`.

        :raises SinkFailed: after a fatal error.
        """
        self._take_in_failures()
        if self.busy:
            self._send(producer)
            return
        if not self._waiting:
            self._log.info("everything that failed is settled")
            self._reset()
            return
        now = time.monotonic()
        drained = not len(producer) or now >= self._drain_until
        if drained and now >= self._not_before and self._topics_asked_for():
            self._begin_round(producer)

    def reported(self, message: Outgoing, error: KafkaError | None, _: Report) -> None:
        """The delivery callback of a message that is at hand."""
        if error is None:
            message.pending.done()
        else:
            self.failures.append(Failure(error, message.pending, message))

    def _reported_again(
        self, message: Outgoing, alone: bool, error: KafkaError | None, _: Report
    ) -> None:
        self._under_way -= 1
        if error is None:
            message.pending.done()
        else:
            self.failures.append(Failure(error, message.pending, message, alone))

    def _take_in_failures(self) -> None:
        if not self.failures:
            return
        self._settled = False
        if not self._drain_until:
            self._drain_until = time.monotonic() + DRAIN_LIMIT_S
        failures, self.failures[:] = self.failures[:], []
        seen: set[tuple[int, str]] = set()
        for failure in failures:
            if is_fatal(failure.error):
                raise SinkFailed(f"the Kafka producer failed: {describe(failure.error)}")
            self._stats.failures["message"] += 1
            message = self._layout.of(failure)
            kind = (failure.error.code(), message.topic)
            settled = self._settle(failure, message, first=kind not in seen)
            seen.add(kind)
            if settled is not None:
                self._waiting.append(settled)

    def _settle(self, failure: Failure, message: Outgoing, first: bool) -> Outgoing | None:
        """What is to be sent instead of a message that failed; None: nothing any more."""
        code = failure.error.code()
        reason = f"topic {message.topic}: {describe(failure.error)}"
        if code not in NEVER_STORABLE:
            self._wait(code, message.topic, reason, first)
            return message
        if not failure.alone:
            self._poisoned = True
            if first:
                # If many follow, the topic's limit was lowered under a running feedmono: it
                # batches by the limits that it read at its start.
                self._log.warning("a batch is refused, its messages go singly", reason=reason)
            self.trouble = self.trouble or f"finding the message that is refused by {reason}"
            return message
        if message.whole is None:
            self._stats.dead_letters += 1
            self._log.warning("dead letter", reason=reason, key=message.key)
            if message.topic == self._layout.trades_topic:
                self._refused.append((message.entry.end, message.rank - 1))
            return self._dead_letters.instead_of(message, reason)
        if code in _TOO_LARGE and (smaller := self._dead_letters.smaller(message)) is not None:
            return smaller
        if self._dead_letters.keep(message):
            self._log.error(
                "the dead letters' topic refuses a letter, only its copy is left", reason=reason
            )
            message.pending.done()
            return None
        self._wait(code, message.topic, f"{reason}, and its copy can't be kept", first)
        return message

    def _wait(self, code: int, topic: str, reason: str, first: bool) -> None:
        """Notes that a round must wait for someone to heal something."""
        if not self._not_before:
            self._not_before = time.monotonic() + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_CAP_S)
        if code in NO_TOPIC:
            self._missing.add(topic)
        if first and code not in _HEALABLE:
            self._log.error(
                "unknown kind of failure, sent again as if it could heal", reason=reason
            )
        self.trouble = reason

    def _topics_asked_for(self) -> bool:
        """Whether the answers about topics that vanished are there."""
        if not self._missing:
            return True
        if self._creation is None:
            self._creation = self._new_creation(self._missing)
        if not self._creation.done:
            return False
        # Refused, or there after all: what the round's messages meet tells.
        for problem in self._creation.problems(time.monotonic()):
            self._log.warning("a topic is missing", error=problem)
        return True

    def _begin_round(self, producer: Producer) -> None:
        self._log.info("sending again", messages=len(self._waiting), singly=self._poisoned)
        self._through_alone = self._poisoned
        if self._through_alone and self.alone is None:
            self.alone = self._new_alone()
        self._to_send.extend(sorted(self._waiting, key=lambda message: message.order))
        self._waiting.clear()
        self._next_round()
        self._send(producer)

    def _send(self, producer: Producer) -> None:
        alone = self._through_alone
        if alone:
            assert self.alone is not None
            producer = self.alone
        while self._to_send:
            message = self._to_send[0]
            report = partial(self._reported_again, message, alone)
            try:
                producer.produce(
                    message.topic, message.value, message.key, -1, report, None, 0, message.headers
                )
            except BufferError:
                return
            except KafkaException as error:
                # Refused before it met any other.
                self.failures.append(Failure(error.args[0], message.pending, message, alone=True))
                self._under_way -= 1
            self._under_way += 1
            self._to_send.popleft()
