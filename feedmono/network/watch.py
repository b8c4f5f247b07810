"""When a connection is dead (not a byte) or useless (not a trade). Knows limits, no clock."""

from __future__ import annotations

import math

STALE_CAP_S = 3600.0
"""Up to which the stale limit is doubled."""


class Watch:
    """The limits of one connection at a time, `open` by `open`. All times are seconds of one
    monotonic clock of the caller's. What successive connections without data have in common,
    the doubled stale limit, lives on from one to the next.
    """

    def __init__(self, silence_limit_s: float, stale_limit_s: float) -> None:
        self._silence_limit_s = silence_limit_s
        self._stale_limit_s = stale_limit_s
        self._barren = 0
        """How many connections in a row went stale without having brought any data."""
        self._had_data = False
        self._expects_data = True
        self._trading = True
        self._heard_s = 0.0
        self._data_s = 0.0
        self._stale_at_s = math.inf
        self._pinged = False

    def open(self, now: float) -> None:
        """A new connection: muteness counts from here."""
        self._had_data = False
        self._expects_data = True
        self._trading = True
        self.forgive(now)

    def heard(self, now: float) -> None:
        """Bytes came, whatever they were."""
        self._heard_s = now
        self._pinged = False

    def data(self, now: float) -> None:
        """Trades came."""
        self._had_data = True
        self._barren = 0
        self._begin(now)

    def forgive(self, now: float) -> None:
        """It was we who did not read: all limits start again."""
        self._begin(now)
        self.heard(now)

    def set_trading(self, trading: bool, now: float) -> None:
        since_s = now if trading and not self._trading else self._data_s
        self._trading = trading
        self._begin(since_s)

    def expect(self, data: bool, now: float) -> None:
        """Whether trades are to come on this connection, as it looks now."""
        since_s = now if data and not self._expects_data else self._data_s
        self._expects_data = data
        self._begin(since_s)

    def _begin(self, since_s: float) -> None:
        """The wait for trades counts from there."""
        self._data_s = since_s
        waits = self._trading and self._expects_data
        self._stale_at_s = since_s + self._limit_s if waits else math.inf

    @property
    def _limit_s(self) -> float:
        doubled_s = self._stale_limit_s * (1 << min(self._barren, 32))
        return min(doubled_s, max(STALE_CAP_S, self._stale_limit_s))

    def ping_due(self, now: float) -> bool:
        """Once per silence, after a third of the limit: time for the answer to come."""
        if self._pinged or now < self._heard_s + self._silence_limit_s / 3:
            return False
        self._pinged = True
        return True

    def is_silent(self, now: float) -> bool:
        return now >= self._heard_s + self._silence_limit_s

    def is_stale(self, now: float) -> bool:
        return now >= self._stale_at_s

    def gone_stale(self) -> float:
        """The connection is given up for it; the limit in s that it exceeded."""
        limit_s = self._limit_s
        if not self._had_data:
            self._barren += 1
        return limit_s

    def next_s(self) -> float:
        """When to look again."""
        third = 1.0 if self._pinged else 1 / 3
        return min(self._heard_s + self._silence_limit_s * third, self._stale_at_s)
