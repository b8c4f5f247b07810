"""Durations and their percentiles: the only file that knows HdrHistogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

_HOUR_US = 3_600_000_000
_DIGITS = 3
# A bucket's durations are taken as spread evenly over it, in so many places.
_PLACES = 50


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one distribution, in milliseconds."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Latencies:
    """A distribution of durations from 1 µs to an hour, three digits of each kept."""

    def __init__(self, encoded: str = "") -> None:
        """:param encoded: what `encoded` gave, elsewhere."""
        self._histogram = HdrHistogram(1, _HOUR_US, _DIGITS)
        if encoded:
            self._histogram.decode_and_add(encoded.encode())

    def add_us(self, duration_us: float, times: int = 1) -> None:
        """Counts a duration; what is below 1 µs counts as that."""
        self._histogram.record_value(min(max(1, round(duration_us)), _HOUR_US), times)

    def add_all(self, durations_us: Iterable[int]) -> None:
        """Counts each of them."""
        for duration_us in durations_us:
            self.add_us(duration_us)

    def add_buckets(self, bounds_s: Sequence[float], counts: Sequence[int]) -> None:
        """Counts what is known by buckets only, spread evenly over each; what lies above the last
        bound counts as that bound."""
        lower_s = 0.0
        for number, count in enumerate(counts):
            upper_s = bounds_s[min(number, len(bounds_s) - 1)]
            for place in range(_PLACES):
                # The shares of the places add up to the count.
                share = count * (place + 1) // _PLACES - count * place // _PLACES
                if share:
                    at_s = lower_s + (upper_s - lower_s) * (place + 0.5) / _PLACES
                    self.add_us(at_s * 1e6, share)
            lower_s = upper_s

    def merge(self, other: Latencies) -> None:
        """Counts all that *other* has."""
        self._histogram.add(other._histogram)

    def encoded(self) -> str:
        """All of it as text, for another process."""
        text: bytes = self._histogram.encode()
        return text.decode()

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def percentiles(self) -> Percentiles | None:
        """None without any duration."""
        if not len(self):
            return None
        at = self._histogram.get_value_at_percentile
        p50, p90, p99, p999 = (float(at(share)) / 1000 for share in (50, 90, 99, 99.9))
        return Percentiles(len(self), p50, p90, p99, p999, self._histogram.get_max_value() / 1000)
