"""What an exchange did in an interval: from one snapshot to the next, and several merged."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from feedmono.supervision.snapshot import ExchangeStatus, Snapshot

# A sample stands for the time since the one before, within these limits: two at once tell no
# rate, and what was stopped for long did not do all that in one go.
_MIN_SPAN_S = 0.5
_MAX_SPAN_S = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One exchange (or all processes together: exchange "") over an interval."""

    exchange: str
    at_s: float
    """Unix time of the interval's end."""
    span_s: float
    """How much of it was sampled: its length of 1, 10, 60, 900 s, or less if the instance did
    not run all the time. A rate is a count by this."""
    trades: int
    """Handed to the sink within the interval; so are all counts up to `sink_errors`."""
    delivered: int
    frames: int
    bytes: int
    reconnects: int
    restarts: int
    dead_letters: int
    duplicates: int
    backfilled: int
    sink_errors: int
    cpu_cores: float
    """Mean."""
    cpu_cores_max: float
    """Of one second."""
    memory_bytes: int
    """Highest; so are all up to `open_trades`."""
    ring_used_bytes: int
    holes_open: int
    open_trades: int
    receive_p50_s: float | None
    """The medians weighted by trades; None without any."""
    receive_p99_s: float | None
    """Highest."""
    delivery_p50_s: float | None
    delivery_p99_s: float | None
    connected: float
    """The share of the interval in state ``flowing``; of all together: in which all were."""


COUNTED = (
    "trades", "delivered", "frames", "bytes", "reconnects", "restarts", "dead_letters",
    "duplicates", "backfilled", "sink_errors",
)  # fmt: skip
"""The fields that add up."""

_counted = attrgetter(*COUNTED)
_highest = attrgetter(
    "cpu_cores_max", "memory_bytes", "ring_used_bytes", "holes_open", "open_trades"
)


def merge(rows: Sequence[Row], at_s: float) -> Row:
    """One row for several of the same exchange; counts add up, what is highest stays it.

    :param rows: at least one.
    :param at_s: the end of the interval that they share.
    """
    span_s = sum(row.span_s for row in rows)
    cores_max, memory, ring, holes, open_trades = map(max, zip(*map(_highest, rows), strict=True))
    return Row(
        rows[0].exchange,
        at_s,
        span_s,
        **_counts(rows),
        cpu_cores=sum(row.cpu_cores * row.span_s for row in rows) / span_s,
        cpu_cores_max=cores_max,
        memory_bytes=memory,
        ring_used_bytes=ring,
        holes_open=holes,
        open_trades=open_trades,
        receive_p50_s=_mean([(row.receive_p50_s, row.trades) for row in rows]),
        receive_p99_s=_max([row.receive_p99_s for row in rows]),
        delivery_p50_s=_mean([(row.delivery_p50_s, row.trades) for row in rows]),
        delivery_p99_s=_max([row.delivery_p99_s for row in rows]),
        connected=sum(row.connected * row.span_s for row in rows) / span_s,
    )


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Of all rows together."""
    totals = [0] * len(COUNTED)
    for row in rows:
        totals = [total + each for total, each in zip(totals, _counted(row), strict=True)]
    return dict(zip(COUNTED, totals, strict=True))


def _mean(weighted: Sequence[tuple[float | None, int]]) -> float | None:
    """The mean of the values that are known; None without any."""
    total, weight = 0.0, 0
    for value, times in weighted:
        if value is not None:
            total += value * times
            weight += times
    return total / weight if weight else None


def _max(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def in_steps(rows: Iterable[Row], step_s: float) -> list[Row]:
    """The rows merged to intervals of *step_s* that end at its multiples, in order of time, and
    of exchanges."""
    groups: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        # To the millisecond: an interval's end must not slip into the next by rounding.
        groups[math.ceil(round(row.at_s / step_s, 6)), row.exchange].append(row)
    return [merge(group, end * step_s) for (end, _), group in sorted(groups.items())]


class Deltas:
    """Snapshots → rows: what happened from each to the next. Never a negative count."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._at: float | None = None
        self._before: dict[str, _Totals] = {}
        self._tree_cpu_s: float | None = None

    def take(self, state: Snapshot, *, last: bool = False) -> list[Row]:
        """A row for each exchange, and one for all together.

        The first ones stand for all since the start of the instance. There are none if it has run
        for longer than a minute by then. There are none either for a snapshot close behind the
        one before, unless it is the *last*: its counts come with the next.
        """
        now = self._monotonic()
        first = self._at is None
        since_s = now - self._at if self._at is not None else state.taken_at_s - state.started_at_s
        if not (first or last) and since_s < _MIN_SPAN_S:
            return []
        span_s = min(max(since_s, _MIN_SPAN_S), _MAX_SPAN_S)
        totals = {e.name: _Totals.of(e) for e in state.exchanges}
        rows = [
            _row(e, totals[e.name], self._before.get(e.name), state.taken_at_s, span_s)
            for e in state.exchanges
        ]
        cores = state.tree.cpu_cores or sum(row.cpu_cores for row in rows)
        if state.tree.cpu_s and self._tree_cpu_s is not None:
            cores = _grown(state.tree.cpu_s, self._tree_cpu_s) / span_s
        rows.append(_together(rows, state, cores, span_s))
        self._at, self._before, self._tree_cpu_s = now, totals, state.tree.cpu_s
        return [] if first and since_s > _MAX_SPAN_S else rows


@dataclass(frozen=True, slots=True)
class _Totals:
    """What only grows, as long as the supervisor lives."""

    counts: Sequence[int]
    """As `COUNTED`."""
    cpu_s: float | None
    """None: not known."""

    @classmethod
    def of(cls, e: ExchangeStatus) -> _Totals:
        counts = e.counts
        return cls(
            (
                e.trades,
                e.delivered,
                counts.get("frames", 0),
                counts.get("bytes", 0),
                e.reconnects,
                e.restarts,
                e.dead_letters,
                e.duplicates,
                counts.get("backfilled", 0),
                counts.get("sink_errors", 0),
            ),
            sum(worker.cpu_s for worker in e.workers) if e.workers else None,
        )


_NOTHING = _Totals((0,) * len(COUNTED), None)


def _grown(now: float, before: float) -> float:
    """By how much a counter grew; one that is less than it was has begun anew."""
    return now - before if now >= before else now


def _row(
    e: ExchangeStatus, now: _Totals, before: _Totals | None, at_s: float, span_s: float
) -> Row:
    earlier = before or _NOTHING
    grown = {
        name: int(_grown(a, b))
        for name, a, b in zip(COUNTED, now.counts, earlier.counts, strict=True)
    }
    cores = e.cpu_cores
    if now.cpu_s is not None and earlier.cpu_s is not None:
        cores = _grown(now.cpu_s, earlier.cpu_s) / span_s
    # The percentiles are those of the last seconds; without a trade they tell of older ones.
    traded = grown["trades"] > 0
    return Row(
        e.name,
        at_s,
        span_s,
        **grown,
        cpu_cores=cores,
        cpu_cores_max=cores,
        memory_bytes=e.memory_bytes,
        ring_used_bytes=e.ring_used_bytes,
        holes_open=e.counts.get("holes_open", 0),
        open_trades=e.counts.get("open_trades", 0),
        receive_p50_s=e.receive_p50_s if traded else None,
        receive_p99_s=e.receive_p99_s if traded else None,
        delivery_p50_s=e.delivery_p50_s if traded else None,
        delivery_p99_s=e.delivery_p99_s if traded else None,
        connected=1.0 if e.state == "flowing" else 0.0,
    )


def _together(rows: Sequence[Row], state: Snapshot, cores: float, span_s: float) -> Row:
    """All processes: the exchanges' counts, the tree's resources."""
    return Row(
        "",
        state.taken_at_s,
        span_s,
        **_counts(rows),
        cpu_cores=cores,
        cpu_cores_max=cores,
        memory_bytes=state.tree.memory_bytes or sum(row.memory_bytes for row in rows),
        ring_used_bytes=sum(row.ring_used_bytes for row in rows),
        holes_open=sum(row.holes_open for row in rows),
        open_trades=sum(row.open_trades for row in rows),
        receive_p50_s=_mean([(row.receive_p50_s, row.trades) for row in rows]),
        receive_p99_s=_max([row.receive_p99_s for row in rows]),
        delivery_p50_s=_mean([(row.delivery_p50_s, row.trades) for row in rows]),
        delivery_p99_s=_max([row.delivery_p99_s for row in rows]),
        connected=min((row.connected for row in rows), default=0.0),
    )
