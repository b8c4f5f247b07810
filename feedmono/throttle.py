"""The serializer's side of the CPU budget: it pauses as long as it has worked too much."""

from __future__ import annotations

import time
from collections.abc import Callable

from feedmono.counters import Counters, Field

PAUSE_CAP_S = 0.25
_SPAN_S = 1.0


class Throttle:
    """Keeps the process's CPU time (all threads') below what the supervisor allows in
    `Field.THROTTLE`. What was not used is forgotten after a second or two: a burst does not live
    on the savings of a quiet hour."""

    def __init__(
        self,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._since_s = 0.0
        self._cpu_before_s = 0.0
        self._parts = 0

    def pause_s(self) -> float:
        """How long to pause now, in seconds; at most `PAUSE_CAP_S`."""
        parts = self._counters[Field.THROTTLE]
        if not parts:
            self._parts = 0
            return 0.0
        now_s, cpu_s = self._clock(), self._cpu_clock()
        if parts != self._parts:
            self._parts, self._since_s, self._cpu_before_s = parts, now_s, cpu_s
        ahead_s = (cpu_s - self._cpu_before_s) * 1000 / parts - (now_s - self._since_s)
        if now_s - self._since_s > _SPAN_S and ahead_s <= 0.0:
            self._since_s, self._cpu_before_s = now_s, cpu_s
        return min(max(ahead_s, 0.0), PAUSE_CAP_S)
