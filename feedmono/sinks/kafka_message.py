"""Entries on their way to Kafka, and their messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError
from confluent_kafka import Message as Report

from feedmono.sinks.base import Entry

Headers = list[tuple[str, str | bytes | None]]


class Pending(ABC):
    """Entries that were handed over together, and of which not every message is acknowledged."""

    __slots__ = ()

    end: int | None
    """The position that is acknowledged with them; None: none yet."""
    left: int
    """How many of their messages are not acknowledged."""

    @abstractmethod
    def done(self) -> None:
        """One of their messages that had failed needs nothing any more."""


class CallbackPending(Pending):
    """Entries whose messages were produced one by one.

    One object for all of them, and its bound `delivered` as every message's callback: at 100,000
    messages a second each object more counts.
    """

    __slots__ = ("_unmatched", "end", "entries", "failures", "handed_ns", "left")

    def __init__(self, failures: list[Failure]) -> None:
        self.entries: Sequence[Entry] = ()
        self.end: int | None = None
        self.left = 0
        self.failures = failures
        self.handed_ns = 0
        """When the last of them was handed over, Unix time."""
        self._unmatched: dict[tuple[str, bytes], list[Outgoing]] | None = None

    def delivered(self, error: KafkaError | None, report: Report) -> None:
        """The delivery callback."""
        if error is None:
            self.left -= 1
        else:
            self.failures.append(Failure(error, self, report))

    def done(self) -> None:
        self.left -= 1

    def message(self, layout: Layout, topic: str, value: bytes) -> Outgoing:
        """Which of their messages that is; asked about those that failed, once each."""
        if self._unmatched is None:
            self._unmatched = defaultdict(list)
            for entry in self.entries:
                for each in layout.messages(self, entry):
                    self._unmatched[each.topic, each.value].append(each)
        # Two of the same bytes are the same message but for the frame's number: either is right.
        same = self._unmatched[topic, value]
        assert same, f"a report of a message that was never sent to {topic}"
        return same.pop() if len(same) > 1 else same[0]


class Outgoing(NamedTuple):
    """One message, with all that it takes to send it again."""

    pending: Pending
    entry: Entry
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
        return self.entry.end, self.rank


class Failure(NamedTuple):
    """A message that was not stored."""

    error: KafkaError
    pending: Pending
    sent: Report | Outgoing
    """librdkafka's report, which holds topic and value but no headers, of a `CallbackPending`; or
    the message itself, where it was at hand."""
    alone: bool = False
    """Whether no other message was in its batch."""


class Layout(NamedTuple):
    """How an entry becomes messages."""

    raw_topic: str
    trades_topic: str
    trade_prefix: bytes
    """What stands before a trade's Avro encoding: 0 and the schema's id (Confluent's wire
    format)."""

    def messages(self, pending: Pending, entry: Entry) -> Iterator[Outgoing]:
        """The entry's raw message and its trades, in order."""
        if entry.symbol is not None:
            frame = entry.frame
            headers: Headers = [("frame", frame.tag)]
            yield Outgoing(pending, entry, 0, self.raw_topic, frame.payload, entry.symbol, headers)
        for rank, (symbol, body) in enumerate(entry.trades, 1):
            value = self.trade_prefix + body
            yield Outgoing(pending, entry, rank, self.trades_topic, value, symbol)

    def of(self, failure: Failure) -> Outgoing:
        """The message that failed."""
        sent = failure.sent
        if isinstance(sent, Outgoing):
            return sent
        assert isinstance(failure.pending, CallbackPending)
        return failure.pending.message(self, sent.topic() or "", sent.value() or b"")
