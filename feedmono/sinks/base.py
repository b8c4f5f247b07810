"""What a sink is to the serializer: it takes batches, and says how far all of it is safe.

The serializer hands over one `Entry` per ring record, in the ring's order, and asks for the
acknowledged position. A sink acknowledges an entry when its raw message *and* all its trades
*and* its dead letter are stored for good, and a position only when every entry up to it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from feedmono.trade import EncodedTrade


class SinkFailed(Exception):
    """The sink can't go on in this process (a fatal producer error, a failed fsync). The
    serializer ends; its successor starts again from the last acknowledged position."""


class Frame(NamedTuple):
    """The exchange's exact bytes, and where they come from."""

    payload: bytes
    connection: int
    sequence: int
    """The ring sequence."""
    received_ns: int
    """Unix time in nanoseconds."""
    origin: int
    """Index into `feedmono.trade.ORIGINS`."""

    @property
    def tag(self) -> str:
        """``<connection>:<sequence>:<received_ns>:<origin>``, the header ``frame``."""
        return f"{self.connection}:{self.sequence}:{self.received_ns}:{self.origin}"


class DeadLetter(NamedTuple):
    """Why a frame, or a part of it, could not be handled."""

    stage: str
    """``ring``, ``decode``, ``normalize``, ``page`` or ``sink``."""
    reason: str
    symbol: str | None = None


class Entry(NamedTuple):
    """What is to be stored for one ring record. An entry may be empty: it is then
    acknowledged with its predecessors."""

    end: int
    """The position behind the record, rising from entry to entry: what the sink acknowledges."""
    frame: Frame
    symbol: str | None = None
    """The raw message's key: the symbol of the frame's first trade; None stores no raw
    message."""
    trades: Sequence[EncodedTrade] = ()
    dead: DeadLetter | None = None


class EntryBatch(Sequence[Entry]):
    """Entries that were made together in C (``native/batch.c``): each is an object only when it is
    asked for. A sink may take it as the sequence that it is."""

    end: int
    """Of the last one."""


class Hole(NamedTuple):
    """Ids of a symbol that were not delivered."""

    first_id: int
    last_id: int
    cause: str
    """``restart``, ``disconnect: …``, ``ring full``, ``exchange``, ``dead``, ``damage``."""
    since_us: int
    """When the trade before it was made; Unix time in microseconds."""


class Coverage(NamedTuple):
    """What of a symbol is stored for good (``schemas/coverage.avsc``)."""

    symbol: str
    epoch: int
    """Counts how often the exchange has begun the symbol's ids anew."""
    from_id: int
    to_id: int
    """Every id from `from_id` to `to_id` is stored but for those below."""
    open_holes: Sequence[Hole]
    """Still being asked for; the oldest 100."""
    open_trades: int
    """How many ids all open holes have together."""
    absent_trades: int
    """Ids that the exchange itself does not have."""
    beyond_trades: int
    """Ids that are not asked for (too old, too many at once)."""
    as_of_us: int
    """The exchange's time of the newest trade in it; Unix time in microseconds."""


MAX_COVERAGE_HOLES = 100


@dataclass(slots=True)
class SinkStats:
    """What a sink counts for the operator, since it was made."""

    dead_letters: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed writes, messages sent again, refusals: everything that `Sink.trouble` tells of, by
    kind: ``disk``; ``broker`` (or registry), ``message`` (a delivery), ``coverage``."""

    @property
    def errors(self) -> int:
        return self.failures.total()


class Sink(ABC):
    """A place where trades are kept. Used by one thread of one process; created after the
    fork, in the process that uses it, with the mark of its predecessor (None: unknown)."""

    stats: SinkStats
    place: str = ""
    """What `mark` belongs to, such as a folder: the marks of other places are kept while this one
    is used. Empty: there is nothing to go on with."""
    refused: list[tuple[int, int]]
    """Trades that are stored as dead letters only: (`Entry.end`, index in `Entry.trades`), told
    before that end is acknowledged. The caller takes them out."""

    stored: deque[tuple[int, int]]
    """When what `poll` has acknowledged was stored: up to which `Entry.end`, rising, and Unix time
    in nanoseconds. The caller takes it out; what is not told of was stored just now."""

    @abstractmethod
    def open(self) -> bool:
        """Tries to make the sink ready: connect, register, recover what a killed predecessor
        left. False: not yet; `trouble` says why, and the caller tries again later, with
        backoff. Never blocks longer than a few seconds.

        :raises SinkFailed: trying again in this process can't help.
        """

    @abstractmethod
    def write(self, entries: Sequence[Entry]) -> int:
        """Takes entries in order; returns how many were taken. Fewer than all is
        backpressure: the caller offers the rest again after a `poll`.

        :raises SinkFailed: see there.
        """

    @abstractmethod
    def poll(self, timeout_s: float) -> int | None:
        """Makes progress for at most about *timeout_s*, and gives the `Entry.end` up to which
        everything is stored for good; None while nothing has been acknowledged.

        :raises SinkFailed: see there.
        """

    @abstractmethod
    def flush(self) -> None:
        """Asks for all that was taken to be stored without waiting for company; `poll` then
        tells when it is."""

    @abstractmethod
    def cover(self, coverages: Sequence[Coverage]) -> None:
        """Takes what is complete by now, one per symbol; the newest of a symbol counts. Stored
        without a promise: what does not arrive is followed by a newer one. Never blocks."""

    @abstractmethod
    def mark(self) -> Mapping[str, int]:
        """What a successor must know to go on exactly behind what is acknowledged now: kept in
        the same transaction as the acknowledged position. At most a few small items."""

    @abstractmethod
    def settle(self) -> None:
        """The mark that was taken last, and everything acknowledged by then, is committed: a
        crash does not fall behind it any more. Finished files may be published, for example.

        :raises SinkFailed: see there.
        """

    @abstractmethod
    def close(self) -> None:
        """Finishes what can be finished at once (publishes files, ends connections). What is
        not acknowledged by then stays unacknowledged."""

    @abstractmethod
    def wait_s(self) -> float:
        """How long the caller may wait for new records before the next `poll`: short while
        acknowledgements are due, a second at most when there are none."""

    @property
    @abstractmethod
    def trouble(self) -> str:
        """Why the sink does not move at the moment, for the operator; empty if it does."""


KINDS = ("trades", "raw", "dead", "coverage")
"""What `Source.read` knows."""


class StoredRecord(NamedTuple):
    """One record as it was found."""

    place: str
    """Where, for people."""
    record: Mapping[str, object] | None
    """Trades and coverage as Avro has them; raw with ``connection``, ``sequence``,
    ``received_ns``, ``origin`` (index into `feedmono.trade.ORIGINS`) and ``payload``; dead
    letters with ``symbol``, ``stage`` and ``reason`` in the place of ``origin``. None: it can't be
    decoded."""
    error: str = ""
    """Why it can't be."""
    key: str | None = None
    """The message's, in Kafka."""
    value: bytes = b""
    """The message's, in Kafka; in files the payload of raw and dead."""


class Source(ABC):
    """Reads back what a sink of the same configuration stores."""

    @abstractmethod
    def follow(self) -> Iterator[Mapping[str, object] | None]:
        """The normalized trades stored from now on, as their Avro records read as dicts, without
        end. Yields None at least every half second while there is nothing, so that the caller
        can stop."""

    @abstractmethod
    def read(self, kind: str) -> Iterator[StoredRecord]:
        """Every record of that kind (`KINDS`) that is stored at the moment of the call, in the
        order of each file or partition. What can't be decoded is told as a record with an
        error, and reading goes on behind it.
        """

    @abstractmethod
    def total(self, kind: str) -> int | None:
        """About how many records `read` would give now; None: that is not to be had cheaply."""

    @abstractmethod
    def complete_from_start(self, kind: str) -> bool:
        """Whether everything that was ever stored is still there, as far as can be told: False
        when a retention has removed something."""
