"""The lowest of the figures that came lately."""

from __future__ import annotations

import math


class Lowest:
    """The lowest of the last *span_s* seconds at the least, and of three times as many at the
    most: two parts, of which the older one is forgotten when the newer one is a span old."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._older = math.inf
        self._newer = math.inf
        self._turns_s = -math.inf

    def look(self, now_s: float, figure: float) -> float:
        """The lowest, *figure* included, which is infinite if there was none; infinite as well if
        there was none lately. Seconds of a monotonic clock."""
        if now_s >= self._turns_s:
            fresh = now_s < self._turns_s + self._span_s
            self._older = self._newer if fresh else math.inf
            self._newer = math.inf
            self._turns_s = now_s + self._span_s
        self._newer = min(self._newer, figure)
        return min(self._older, self._newer)
