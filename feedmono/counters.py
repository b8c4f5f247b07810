"""The page of counters that one exchange's workers write and everyone else reads.

A memory-mapped file of 64-bit words beside the ring. Each word has one writing process; a reader
sees each word whole, but not several at one moment. Totals outlive a worker: its successor goes
on counting. The supervisor makes a fresh page when it starts.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """How ``/metrics`` tells a word."""

    type: Literal["counter", "gauge", "histogram"]
    name: str
    """Without ``feedmono_`` in front, and without a counter's ``_total``."""
    text: str


_counter = partial(Metric, "counter")
_gauge = partial(Metric, "gauge")
_histogram = partial(Metric, "histogram")
# Told by its kinds, in another form, or not at all.
_NO_METRIC: Final = None


class _Told(IntEnum):
    """Counts from zero in the order of the members; each has its metric beside it."""

    metric: Metric | None

    def __new__(cls, metric: Metric | None) -> _Told:
        member = int.__new__(cls, len(cls.__members__))
        member._value_ = int(member)
        member.metric = metric
        return member


class Field(_Told):
    """One word each. Written by the reader process:"""

    FRAMES = _counter("frames", "Messages of the exchange that went into the ring.")
    BYTES = _counter("bytes", "Bytes off the sockets.")
    RECONNECTS = _NO_METRIC
    """Connections that were lost or replaced; told by `RECONNECT_REASONS`."""
    UNKNOWN_MESSAGES = _counter("unknown_messages", "Messages of a kind that is not known.")
    RING_FULL = _counter("ring_full", "How often a connection found the ring full and stopped.")
    LOST_FRAMES = _counter("lost_frames", "Messages received that found no room in the ring.")
    """Before the reader had to stop."""
    CONNECTIONS = _gauge("connections", "Connections that there are to be.")
    CONNECTED = _gauge("connections_flowing", "Connections open, subscribed and not stale.")
    SUBSCRIBED = _gauge("symbols_subscribed", "Symbols acknowledged on the open connections.")
    REFUSED = _gauge("symbols_refused", "Symbols that the exchange refused.")
    ROTATIONS = _counter("rotations", "Connections replaced while they worked.")
    PAGES = _counter("pages", "Pages of past trades fetched by REST.")
    PAGES_FAILED = _counter("pages_failed", "Requests for pages of past trades that brought none.")
    READER_BEATS = _NO_METRIC
    """Moves as long as every thread of the reader comes round."""
    # The reconnects by their reason, `reconnect_field`.
    RECONNECTS_UNREACHABLE = _NO_METRIC
    RECONNECTS_TLS = _NO_METRIC
    RECONNECTS_HTTP = _NO_METRIC
    RECONNECTS_HANDSHAKE = _NO_METRIC
    RECONNECTS_LOST = _NO_METRIC
    RECONNECTS_CLOSED = _NO_METRIC
    RECONNECTS_SILENT = _NO_METRIC
    RECONNECTS_STALE = _NO_METRIC
    RECONNECTS_UNANSWERED = _NO_METRIC
    RECONNECTS_UNSENT = _NO_METRIC
    RECONNECTS_TOO_LARGE = _NO_METRIC
    RECONNECTS_PROTOCOL_ERROR = _NO_METRIC

    # Written by the serializer:
    TRADES = _counter("trades", "Trades handed to the sink.")
    DELIVERED_TRADES = _counter("delivered_trades", "Trades that the sink acknowledged.")
    DUPLICATES = _counter("duplicates_dropped", "Trades dropped because they were known already.")
    """They had been handed to the sink before."""
    DEAD_LETTERS = _counter("dead_letters", "Messages that can never be stored as they are.")
    SINK_ERRORS = _NO_METRIC
    """Told by `SINK_ERROR_KINDS`."""
    DAMAGED_RECORDS = _counter("damaged_records", "Places of the ring that could not be read.")
    LAST_TRADE_NS = _NO_METRIC
    """When the last frame with a new trade came off its socket, Unix time."""
    SINK_READY = _gauge("sink_ready", "1 while the sink takes entries.")
    HOLES = _counter("gaps", "Gaps in a symbol's trade ids that were found.")
    HOLE_TRADES = _counter("gap_trades", "Trade ids in the gaps that were found.")
    HOLES_OPEN = _gauge("gaps_open", "Gaps that are open now.")
    OPEN_TRADES = _gauge("gap_trades_open", "Trade ids in the gaps that are open now.")
    BACKFILLED = _counter("backfilled_trades", "Trades of gaps that REST gave.")
    LATE = _counter("late_trades", "Trades of gaps that came late on the stream.")
    ABSENT = _gauge("gap_trades_absent", "Trade ids that the exchange itself does not have.")
    BEYOND = _gauge("gap_trades_beyond", "Trade ids not asked for: too old, or too many.")
    PAGES_REFUSED = _counter("pages_refused", "Pages that could not be what was asked for.")
    LEDGER_ERRORS = _counter("ledger_errors", "Commits of the ledger that failed.")
    SERIALIZER_BEATS = _NO_METRIC
    """Moves as long as the serializer's loop comes round."""
    SERIALIZER_ALLOWANCE_S = _NO_METRIC
    """How long it may be until the next beat, where that is known to be long: a sink that opens.
    0: as usual."""
    CLOCK_OFFSET_NS = _NO_METRIC
    """The shortest time from the exchange's stamp to the socket in the last `OFFSET_SPAN_S`,
    signed; `NO_OFFSET` if there was none."""
    # The sink's errors by kind, `SINK_ERROR_KINDS`.
    SINK_ERRORS_DISK = _NO_METRIC
    SINK_ERRORS_BROKER = _NO_METRIC
    SINK_ERRORS_MESSAGE = _NO_METRIC
    SINK_ERRORS_COVERAGE = _NO_METRIC
    SINK_ERRORS_FATAL = _NO_METRIC
    """The sink could not go on; its process ended and was started again."""

    # Written by the supervisor:
    THROTTLE = _NO_METRIC
    """What the serializer may use, in thousandths of a core; 0: all it wants."""


class Histogram(_Told):
    """What is counted by duration, by the serializer."""

    metric: Metric

    RECEIVE = _histogram("receive_latency_seconds", "From the exchange's time to the socket.")
    """Of live trades. The two clocks may disagree: a negative duration counts as the shortest."""
    RING = _histogram("ring_latency_seconds", "From the socket to the serializer.")
    DELIVERY = _histogram("delivery_latency_seconds", "From the socket to the acknowledgement.")


BOUNDS_S: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 3600.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets; the last bucket has none."""

BOUNDS_US: Final = tuple(round(bound_s * 1e6) for bound_s in BOUNDS_S)
_BUCKETS: Final = len(BOUNDS_S) + 1
_HISTOGRAMS_AT: Final = 128
# The buckets, and the sum in µs.
_STRIDE: Final = _BUCKETS + 1
_WORDS: Final = 512
assert len(Field) <= _HISTOGRAMS_AT
assert _HISTOGRAMS_AT + len(Histogram) * _STRIDE <= _WORDS

NO_OFFSET: Final = -(1 << 63)
"""Of `Field.CLOCK_OFFSET_NS`."""
OFFSET_SPAN_S: Final = 60.0

RECONNECT_REASONS: Final = {
    field.name.removeprefix("RECONNECTS_").lower(): field
    for field in Field
    if field.name.startswith("RECONNECTS_")
}
SINK_ERROR_KINDS: Final = {
    field.name.removeprefix("SINK_ERRORS_").lower(): field
    for field in Field
    if field.name.startswith("SINK_ERRORS_")
}


def reconnect_field(reason: str) -> Field:
    """The field of a reason to reconnect (`feedmono.network.contract.Report.reconnect`),
    whose details (a status, a code) are left out."""
    words = reason.split()
    first = words[0] if words else ""
    kind = first if first in RECONNECT_REASONS else "_".join(words)
    return RECONNECT_REASONS.get(kind, Field.RECONNECTS_LOST)


class Counters:
    """The page. Word stores are atomic; `add` is not: one thread, or a lock, per field."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Opens an existing page.

        :raises OSError: there is none.
        :raises ValueError: it is too short to be one.
        """
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
        try:
            self._map = mmap.mmap(fd, _WORDS * 8, access=access)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, path: Path) -> Counters:
        """A page of zeroes; an older one of that name is replaced."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(bytes(_WORDS * 8))
        fresh.chmod(0o644)
        cls(fresh).set_signed(Field.CLOCK_OFFSET_NS, NO_OFFSET)
        fresh.rename(path)
        return cls(path)

    def __getitem__(self, field: Field) -> int:
        return self._words[field]

    def __setitem__(self, field: Field, value: int) -> None:
        self._words[field] = value

    def add(self, field: Field, amount: int = 1) -> None:
        self._words[field] += amount

    def signed(self, field: Field) -> int:
        """A word that may be negative."""
        value = self._words[field]
        return value - (1 << 64) if value >> 63 else value

    def set_signed(self, field: Field, value: int) -> None:
        self._words[field] = value & ((1 << 64) - 1)

    def observe(self, histogram: Histogram, duration_s: float, times: int = 1) -> None:
        """Counts a duration in its bucket."""
        at = _HISTOGRAMS_AT + histogram * _STRIDE
        words = self._words
        words[at + bisect_left(BOUNDS_S, duration_s)] += times
        if duration_s > 0.0:
            words[at + _BUCKETS] += int(duration_s * 1e6) * times

    def observe_all(self, histogram: Histogram, durations_us: list[int]) -> None:
        """Counts each of them, in microseconds; sorts the list."""
        # The hot path: 0.1 µs each in hundreds, where `observe` takes 0.7.
        at = _HISTOGRAMS_AT + histogram * _STRIDE
        words = self._words
        durations_us.sort()
        count = len(durations_us)
        counted = 0
        while counted < count:
            bucket = bisect_left(BOUNDS_US, durations_us[counted])
            behind = count
            if bucket < len(BOUNDS_US):
                behind = bisect_right(durations_us, BOUNDS_US[bucket], counted)
            words[at + bucket] += behind - counted
            counted = behind
        negative = bisect_left(durations_us, 0)
        words[at + _BUCKETS] += sum(durations_us[negative:] if negative else durations_us)

    def words(self, histogram: Histogram) -> memoryview:
        """The words of its buckets and, behind them, of the sum in µs: for who counts in C."""
        at = _HISTOGRAMS_AT + histogram * _STRIDE
        return self._words[at : at + _STRIDE]

    def buckets(self, histogram: Histogram) -> tuple[int, ...]:
        """The counts of all buckets, the boundless one last."""
        at = _HISTOGRAMS_AT + histogram * _STRIDE
        return tuple(self._words[at : at + _BUCKETS])

    def sum_s(self, histogram: Histogram) -> float:
        """All durations together; negative ones count as none."""
        return self._words[_HISTOGRAMS_AT + histogram * _STRIDE + _BUCKETS] / 1e6


def quantile(buckets: tuple[int, ...], share: float) -> float | None:
    """The duration in seconds below which that share of the observations lies, interpolated
    within its bucket; None without any observation."""
    total = sum(buckets)
    if not total:
        return None
    wanted = share * total
    below = 0
    for i, count in enumerate(buckets):
        if count and below + count >= wanted:
            lower = BOUNDS_S[i - 1] if i else 0.0
            upper = BOUNDS_S[min(i, len(BOUNDS_S) - 1)]
            return lower + (upper - lower) * (wanted - below) / count
        below += count
    return BOUNDS_S[-1]
