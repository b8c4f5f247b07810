"""When the next REST request may be made: the exchange's weights, and what it asks for itself.

An exchange bans addresses that ask too much, and a ban outlives a restart. So one pace is shared
by all threads that ask, and how long the exchange wants to be left alone is kept in a file.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedmono.exchanges.base import Limits
from feedmono.log import Log
from feedmono.network.kept import KeptFile
from feedmono.network.limiter import MAX_HOLD_S, SHARE

LIMITED_S = 10.0
"""How long to `RestPace.hold` at first after too many requests, if the exchange does not say."""


class RestPace:
    """At most `SHARE` of the allowed weight in any window, all threads together. A request that
    exceeds this alone goes alone, and counts for so much longer.

    Timers run on the monotonic clock. The wall clock only tells, after a restart, how much of a
    hold is left; one that was set back makes it as long again as it was, never longer. A file
    that can't be read counts as no hold, one that can't be written costs the memory over a
    restart; both are logged, neither stops anything.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """:param path: the file, one per exchange.
        :param limits: what the exchange documents.
        :param clock: seconds, monotonic.
        :param wall: Unix time in seconds.
        """
        self._allowed = limits.rest_weight * SHARE
        self._window_s = limits.rest_window_s
        self._log = log
        self._file = KeptFile(
            path,
            log,
            missing="no hold of REST requests on record",
            unreadable="the record of how long REST requests are held can't be read: counted as "
            "none",
            unwritable="how long REST requests are held can't be recorded: a restart will not "
            "know; make room, or the folder writable",
        )
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        # When each request leaves the window, and its weight.
        self._made: deque[tuple[float, int]] = deque()
        self._used = 0
        self._held_until_s = -math.inf
        self._busy_until_s = -math.inf
        self._load()

    def reserve(self, weight: int) -> float:
        """Seconds to wait, after which to ask again; 0: go, the request is counted."""
        with self._lock:
            now_s = self._clock()
            while self._made and self._made[0][0] <= now_s:
                self._used -= self._made.popleft()[1]
            free_s = max(self._held_until_s, self._busy_until_s, self._room_s(weight, now_s))
            if free_s > now_s:
                return free_s - now_s
            share = max(1.0, weight / self._allowed)
            self._made.append((now_s + self._window_s * share, weight))
            self._used += weight
            return 0.0

    def _room_s(self, weight: int, now_s: float) -> float:
        """When so much weight is free, if nobody asks before."""
        used, room_s = self._used, now_s
        for leaves_s, each in self._made:
            if used + weight <= self._allowed:
                break
            used, room_s = used - each, leaves_s
        return room_s

    def told(self, used: int) -> None:
        """The exchange's own count of what all programs behind this address have used in its
        current window. Above `SHARE`, nobody asks until that window has surely passed."""
        with self._lock:
            if used <= self._allowed:
                return
            now_s = self._clock()
            begins = self._busy_until_s <= now_s
            self._busy_until_s = now_s + self._window_s
        if begins:
            self._log.info(
                "the address's REST weight is nearly used up: waiting",
                used=used,
                resumes_in_s=self._window_s,
            )

    def hold(self, seconds: float, *, remember: bool = True) -> None:
        """No request for so long, whoever asks: the exchange said ``Retry-After``. At most
        `MAX_HOLD_S`; never shortens a hold.

        :param remember: whether it holds over a restart, too.
        """
        with self._lock:
            seconds = min(seconds, MAX_HOLD_S)
            until_s = self._clock() + seconds
            if seconds > 0.0 and until_s > self._held_until_s:
                self._held_until_s = until_s
                if remember:
                    self._save(seconds)

    def _load(self) -> None:
        if not (kept := self._file.read(_read)):
            return
        held_at, hold_s = kept
        now = self._wall()
        left_s = min(held_at + hold_s - now, hold_s, MAX_HOLD_S)
        if left_s > 0.0:
            self._held_until_s = self._clock() + left_s
            self._log.info("REST requests are held still", resumes_in_s=round(left_s, 1))
            if held_at > now:
                # Else each further restart would begin the hold anew.
                self._save(left_s)

    def _save(self, hold_s: float) -> None:
        """A crash of the host may tear the file, and then the exchange says it again."""
        self._file.write({"held_at": self._wall(), "hold_s": hold_s})


def _read(content: Any) -> tuple[float, float]:
    """When a hold began, and how long it is."""
    return _number(content["held_at"]), _number(content["hold_s"])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"not a number of seconds: {value!r:.60}")
    return float(value)
