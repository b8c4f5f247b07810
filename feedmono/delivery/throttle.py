"""The serializer's side of the CPU budget: it pauses as long as it has worked too much."""

from __future__ import annotations

import time
from collections.abc import Callable

from feedmono.counters import Counters, Field

PAUSE_CAP_S = 0.25
# The time whose share is saved up at most.
_SAVED_S = 0.25


class Throttle:
    """Keeps the process's CPU time (all threads') below what the supervisor allows in
    `Field.THROTTLE`. What it has used beyond that is owed, also when the share changes. What it
    has not used is soon forgotten: a burst does not live on the savings of a quiet hour."""

    def __init__(
        self,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._throttled = False
        self._before_s = 0.0
        self._cpu_before_s = 0.0
        self._owed_s = 0.0
        """CPU time used beyond the share; negative: saved up."""

    def pause_s(self) -> float:
        """How long to pause now, in seconds; at most `PAUSE_CAP_S`."""
        parts = self._counters[Field.THROTTLE]
        if not parts:
            self._throttled = False
            return 0.0
        cores = parts / 1000
        now_s, cpu_s = self._clock(), self._cpu_clock()
        if self._throttled:
            self._owed_s += cpu_s - self._cpu_before_s - cores * (now_s - self._before_s)
            self._owed_s = max(self._owed_s, -cores * _SAVED_S)
        else:
            self._throttled, self._owed_s = True, 0.0
        self._before_s, self._cpu_before_s = now_s, cpu_s
        return min(max(self._owed_s / cores, 0.0), PAUSE_CAP_S)
