"""An entry on its way to Kafka, and its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError
from confluent_kafka import Message as Report

from feedmono.sinks.base import Entry

Headers = list[tuple[str, str | bytes | None]]


class Pending:
    """An entry of which not every message is acknowledged.

    One object an entry, and its bound `delivered` as every message's callback: at 100,000
    messages a second each object more counts.
    """

    __slots__ = ("end", "entry", "failures", "left")

    def __init__(self, entry: Entry, left: int, failures: list[Failure]) -> None:
        self.entry = entry
        self.end = entry.end
        """The position that is acknowledged with it; entries without messages move it on."""
        self.left = left
        """How many of its messages are not acknowledged."""
        self.failures = failures

    def delivered(self, error: KafkaError | None, report: Report) -> None:
        """The delivery callback."""
        if error is None:
            self.left -= 1
        else:
            self.failures.append(Failure(error, self, report))


class Outgoing(NamedTuple):
    """One message, with all that it takes to send it again."""

    pending: Pending
    rank: int
    """Its place among the messages of its entry."""
    topic: str
    value: bytes
    key: str | None
    headers: Headers | None = None
    whole: bytes | None = None
    """The uncut payload of a dead letter; None for any other message."""

    @property
    def order(self) -> tuple[int, int]:
        """What the original order sorts by."""
        return self.pending.entry.end, self.rank


class Failure(NamedTuple):
    """A message that was not stored."""

    error: KafkaError
    pending: Pending
    sent: Report | Outgoing
    """librdkafka's report, which holds topic and value but no headers; or the message itself,
    where it was at hand."""
    alone: bool = False
    """Whether no other message was in its batch."""


class Layout(NamedTuple):
    """How an entry becomes messages."""

    raw_topic: str
    trades_topic: str
    trade_prefix: bytes
    """What stands before a trade's Avro encoding: 0 and the schema's id (Confluent's wire
    format)."""

    def raw(self, pending: Pending) -> Outgoing:
        frame = pending.entry.frame
        headers: Headers = [("frame", frame.tag)]
        return Outgoing(pending, 0, self.raw_topic, frame.payload, pending.entry.symbol, headers)

    def messages(self, pending: Pending) -> Sequence[Outgoing]:
        """The entry's raw message and its trades, in order."""
        entry = pending.entry
        messages = [] if entry.symbol is None else [self.raw(pending)]
        for rank, (symbol, body) in enumerate(entry.trades, 1):
            value = self.trade_prefix + body
            messages.append(Outgoing(pending, rank, self.trades_topic, value, symbol))
        return messages

    def of(self, failure: Failure) -> Outgoing:
        """The message that failed."""
        sent = failure.sent
        if isinstance(sent, Outgoing):
            return sent
        if sent.topic() == self.raw_topic:
            return self.raw(failure.pending)
        value = sent.value() or b""
        # Two trades of the same bytes are the same message: either rank is right.
        for message in self.messages(failure.pending):
            if message.topic == self.trades_topic and message.value == value:
                return message
        raise AssertionError(f"a report of a message that was never sent to {sent.topic()}")
