"""When Kafka acknowledged what was handed over, without looking all the time.

librdkafka does not tell when an acknowledgement came, and each look costs a wake-up: at 200 trades
a second half of what the process costs. So a few times a second one hand-over is watched closely;
those between are taken to have been as quick, within what the looks have seen.
"""

from __future__ import annotations

import math

from feedmono.sinks.kafka_message import Pending

WATCH_NS = 200_000_000
"""From one hand-over that is watched to the next."""
LOOK_S = 0.001
"""How soon the one that is watched is looked at first; then twice as late each time."""
_LONGEST_S = 1.0


class AckWatch:
    """Knows how long acknowledgements take. Times are Unix times of the local clock, which may
    step: nothing but figures for people depends on them."""

    def __init__(self) -> None:
        self._watched: Pending | None = None
        self._next_ns = -math.inf
        self._pause_s = LOOK_S
        self._looked_ns = 0
        self._took_ns = 0

    def stored_ns(self, pending: Pending, now_ns: int) -> int:
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
        self._pause_s = min(self._pause_s * 2.0, _LONGEST_S)

    def look_s(self, newest: Pending, now_ns: int, usual_s: float) -> float:
        """How long until the next look; *newest* was handed over just now, or earlier."""
        if self._watched is None:
            if self._next_ns - WATCH_NS <= now_ns < self._next_ns:
                return usual_s
            self._watched, self._pause_s = newest, LOOK_S
        return min(self._pause_s, usual_s)
