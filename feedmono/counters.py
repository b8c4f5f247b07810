"""The page of counters that one exchange's workers write and everyone else reads.

A memory-mapped file of 64-bit words beside the ring. Each word has one writing process; a reader
sees each word whole, but not several at one moment. Totals outlive a worker: its successor goes
on counting. The supervisor makes a fresh page when it starts.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left, bisect_right
from enum import IntEnum, auto
from pathlib import Path
from typing import Final


class _FromZero(IntEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Field(_FromZero):
    """One word each. Written by the reader process:"""

    FRAMES = auto()
    """Messages that went into the ring."""
    BYTES = auto()
    """Bytes off the sockets."""
    RECONNECTS = auto()
    """Connections that were lost or replaced."""
    UNKNOWN_MESSAGES = auto()
    RING_FULL = auto()
    """How often a connection found the ring full and stopped reading."""
    LOST_FRAMES = auto()
    """Messages that were received and found no room before the reader had to stop."""
    CONNECTIONS = auto()
    """How many connections there are to be."""
    CONNECTED = auto()
    """How many are open, subscribed and not stale."""
    SUBSCRIBED = auto()
    """Symbols that the exchange acknowledged on the open connections."""
    REFUSED = auto()
    """Symbols that it refused."""
    ROTATIONS = auto()
    """Connections that were replaced while they worked."""
    PAGES = auto()
    """Pages of past trades that were fetched by REST."""
    PAGES_FAILED = auto()
    """Requests for pages that brought none."""
    READER_BEATS = auto()
    """Moves as long as every thread of the reader comes round."""
    # The reconnects by their reason, `reconnect_field`.
    RECONNECTS_UNREACHABLE = auto()
    RECONNECTS_TLS = auto()
    RECONNECTS_HTTP = auto()
    RECONNECTS_HANDSHAKE = auto()
    RECONNECTS_LOST = auto()
    RECONNECTS_CLOSED = auto()
    RECONNECTS_SILENT = auto()
    RECONNECTS_STALE = auto()
    RECONNECTS_UNANSWERED = auto()
    RECONNECTS_UNSENT = auto()
    RECONNECTS_TOO_LARGE = auto()
    RECONNECTS_PROTOCOL_ERROR = auto()

    # Written by the serializer:
    TRADES = auto()
    """Trades handed to the sink."""
    DELIVERED_TRADES = auto()
    """Trades that the sink acknowledged."""
    DUPLICATES = auto()
    """Trades that were dropped because they had been handed to the sink before."""
    DEAD_LETTERS = auto()
    SINK_ERRORS = auto()
    DAMAGED_RECORDS = auto()
    """Places of the ring that could not be read."""
    LAST_TRADE_NS = auto()
    """When the last frame with a new trade came off its socket, Unix time."""
    SINK_READY = auto()
    """1 while the sink takes entries."""
    HOLES = auto()
    """Holes in a symbol's ids that were found."""
    HOLE_TRADES = auto()
    """How many ids were in them."""
    HOLES_OPEN = auto()
    """How many are open now."""
    OPEN_TRADES = auto()
    """How many ids are in these."""
    BACKFILLED = auto()
    """Trades that REST gave."""
    LATE = auto()
    """Trades that came late on the stream, into a hole."""
    ABSENT = auto()
    """Ids that the exchange itself does not have, by now."""
    BEYOND = auto()
    """Ids that are not asked for, by now: too old, or too many in one hole."""
    PAGES_REFUSED = auto()
    """REST pages that could not be what was asked for."""
    LEDGER_ERRORS = auto()
    """Commits of the ledger that failed."""
    SERIALIZER_BEATS = auto()
    """Moves as long as the serializer's loop comes round."""
    SERIALIZER_ALLOWANCE_S = auto()
    """How long it may be until the next beat, where that is known to be long: a sink that opens.
    0: as usual."""
    CLOCK_OFFSET_NS = auto()
    """The shortest time from the exchange's stamp to the socket in the last `OFFSET_SPAN_S`,
    signed; `NO_OFFSET` if there was none."""
    # The sink's errors by kind, `SINK_ERROR_KINDS`.
    SINK_ERRORS_DISK = auto()
    SINK_ERRORS_BROKER = auto()
    SINK_ERRORS_MESSAGE = auto()
    SINK_ERRORS_COVERAGE = auto()
    SINK_ERRORS_FATAL = auto()
    """The sink could not go on; its process ended and was started again."""

    # Written by the supervisor:
    THROTTLE = auto()
    """What the serializer may use, in thousandths of a core; 0: all it wants."""


class Histogram(_FromZero):
    """What is counted by duration, by the serializer."""

    RECEIVE = auto()
    """Exchange time → socket, of live trades. The two clocks may disagree: a negative duration
    counts as the shortest."""
    RING = auto()
    """Socket → serializer."""
    DELIVERY = auto()
    """Socket → acknowledged by the sink."""


BOUNDS_S: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 3600.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets; the last bucket has none."""

_BOUNDS_US: Final = tuple(round(bound_s * 1e6) for bound_s in BOUNDS_S)
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
            bucket = bisect_left(_BOUNDS_US, durations_us[counted])
            behind = count
            if bucket < len(_BOUNDS_US):
                behind = bisect_right(durations_us, _BOUNDS_US[bucket], counted)
            words[at + bucket] += behind - counted
            counted = behind
        negative = bisect_left(durations_us, 0)
        words[at + _BUCKETS] += sum(durations_us[negative:] if negative else durations_us)

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
