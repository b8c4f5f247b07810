"""When Kafka acknowledged what was handed over with callbacks, without looking all the time.

To a callback librdkafka does not tell when an acknowledgement came, and each look costs a wake-up:
at 200 trades a second half of what the process costs. So a few times a second one hand-over is
watched closely; those between are taken to have been as quick, within what the looks have seen.
"""

from __future__ import annotations

import math

from feedmono.sinks.kafka_message import CallbackPending

WATCH_NS = 200_000_000
"""From one hand-over that is watched to the next."""
LOOK_NS = 1_000_000
"""How soon the one that is watched is looked at first, and the least pause between two looks."""


class AckWatch:
    """Knows how long acknowledgements take, to about a millisecond or a quarter, whichever is more.
    Times are Unix times of the local clock, which may step: nothing but figures for people depends
    on them."""

    def __init__(self) -> None:
        self._watched: CallbackPending | None = None
        self._next_ns = -math.inf
        self._look_ns = 0
        self._looked_ns = 0
        self._took_ns = 0

    def stored_ns(self, pending: CallbackPending, now_ns: int) -> int:
        """When a hand-over that is complete now was acknowledged."""
        if pending is self._watched:
            self._watched = None
            self._took_ns = now_ns - pending.handed_ns
            self._next_ns = now_ns + WATCH_NS
            return now_ns
        return min(max(pending.handed_ns + self._took_ns, self._looked_ns), now_ns)

    def looked(self, now_ns: int) -> None:
        """All that was complete at that time has been asked about."""
        self._looked_ns = now_ns
        if self._watched is not None and now_ns >= self._look_ns:
            waited_ns = now_ns - self._watched.handed_ns
            self._look_ns = now_ns + max(LOOK_NS, waited_ns // 4)

    def look_s(self, newest: CallbackPending, now_ns: int, usual_s: float) -> float:
        """How long until the next look; *newest* was handed over just now, or earlier."""
        if self._watched is None:
            if self._next_ns - WATCH_NS <= now_ns < self._next_ns:
                return usual_s
            self._watched = newest
            # Most take about as long as the last one: no look is of use much earlier.
            self._look_ns = newest.handed_ns + max(LOOK_NS, self._took_ns // 2)
        return min(max(self._look_ns - now_ns, 0) / 1e9, usual_s)
