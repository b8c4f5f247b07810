"""Batches to Kafka without a step in Python for each message: ``native/kafka.c``.

The producer stays confluent-kafka's. The native extension is a plugin of its librdkafka, a way that
librdkafka offers for such things: so it learns the producer's handle, and of each acknowledgement
the moment it comes. What a batch can't do (a message that is refused, a queue that is full, a
message sent again) goes on message by message, with callbacks, as it does without the extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol, TypeGuard

from confluent_kafka import KafkaError, cimpl

from feedmono import native
from feedmono.sinks.base import Entry, EntryBatch
from feedmono.sinks.kafka_message import Failure, Layout, Pending
from feedmono.trade import STREAM

PLUGINS = "plugin.library.paths"
"""The producer's property."""


class _Sent(Protocol):
    """What kafka.c tells of a hand-over."""

    left: int
    stored_ns: int

    def failures(self) -> list[tuple[int, int, int]]:
        """The messages that were not stored, each told once: the number of its entry, its rank
        there, and librdkafka's error."""


class BatchPending(Pending):
    """Entries of a batch that were handed over together."""

    __slots__ = ("_entries", "_sent", "_settled", "end")

    def __init__(self, entries: Sequence[Entry], sent: _Sent, end: int | None) -> None:
        """:param entries: those that were handed over, from the first on."""
        self._entries = entries
        self._sent = sent
        self._settled = 0
        self.end = end

    @property
    def left(self) -> int:  # type: ignore[override]
        return self._sent.left - self._settled

    @property
    def stored_ns(self) -> int:
        """When the last message was acknowledged, Unix time; 0: that is not known."""
        return self._sent.stored_ns

    def done(self) -> None:
        self._settled += 1

    def failures(self, layout: Layout) -> Iterator[Failure]:
        """The messages that were not stored since the last call."""
        for number, failed in groupby(self._sent.failures(), key=itemgetter(0)):
            # By their ranks: the entries of a batch have a raw message.
            messages = list(layout.messages(self, self._entries[number]))
            for _, rank, code in failed:
                yield Failure(KafkaError(code), self, messages[rank])


def plugin() -> str | None:
    """What the producer's `PLUGINS` must name for a `HandOver`; None where there is none: no native
    extension, or another librdkafka than it knows."""
    if native.trades is None:
        return None
    path = native.trades.__file__
    try:
        native.trades.kafka_load(cimpl.__file__)
    except OSError:
        return None
    # librdkafka takes a list of paths.
    return path if path and ";" not in path else None


def is_batch(entries: Sequence[Entry]) -> TypeGuard[EntryBatch]:
    """Whether `HandOver.write` can take them."""
    return native.trades is not None and type(entries) is native.trades.Batch


class HandOver:
    """From batches to the producer that was made last, with this plugin."""

    def __init__(self, layout: Layout) -> None:
        assert native.trades is not None
        self._native = native.trades.HandOver(
            raw_topic=layout.raw_topic,
            trades_topic=layout.trades_topic,
            prefix=layout.trade_prefix,
            origin=STREAM,
        )
        self._failures: int = self._native.failures

    def write(self, batch: EntryBatch, at: int) -> tuple[int, int, BatchPending]:
        """Hands over the entries from that one on: how many, and how many messages of the next one
        if that was not taken whole; and what waits for their acknowledgement, which has the
        position behind the last whole one, or None."""
        taken, handed, sent = self._native.write(batch, at)
        if not at and taken == len(batch):
            return taken, handed, BatchPending(batch, sent, batch.end)
        # The caller may split it.
        entries = batch[at : at + taken + 1]
        return taken, handed, BatchPending(entries, sent, entries[taken - 1].end if taken else None)

    def news_of_failures(self) -> bool:
        """Whether any message was not stored since the last call."""
        before, self._failures = self._failures, self._native.failures
        return self._failures != before

    def close(self) -> None:
        """To be called before the producer goes."""
        self._native.close()
