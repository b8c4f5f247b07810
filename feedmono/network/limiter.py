"""When the next connection attempt may be made: the exchange's limit, and the backoff.

An exchange bans addresses that connect too often, and a ban outlives a restart. So the attempts
are remembered in a file, and shared by all connections of the exchange.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

from feedmono.exchanges.base import Limits
from feedmono.log import Log
from feedmono.network.kept import KeptFile
from feedmono.ring import boot_id

SHARE = 0.8
"""Of the documented figure: the rest is for other programs behind the same address."""
MAX_HOLD_S = 3 * 86_400.0
"""The longest that `AttemptLimiter.hold` keeps still. Binance bans for 3 days at most."""

_BOOT = boot_id().hex()
_BOOTED_S = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def steady_time() -> float:
    """Unix time in seconds as it was when the process started, and what has passed since, be it
    asleep: a wall clock that is set while it runs lengthens or shortens no wait."""
    return _BOOTED_S + time.clock_gettime(time.CLOCK_BOOTTIME)


class AttemptLimiter:
    """At most `SHARE` of the allowed connection attempts per window, all threads of this process
    and the processes before it together (one process at a time).

    The first half of them is given at once. Then they are spaced so that the second half lasts
    for a whole window: a storm of short-lived connections is slowed down early instead of
    standing still at the end, when there would be nothing left for the rest of the window.

    Times are Unix seconds, those of an earlier process of the same boot by this one's clock. A
    clock that was set back over a boot makes an attempt of the future: it counts as one of now, so
    the error is on the slow side. A file that can't be read counts as no attempts
    made, one that can't be written costs the memory over a restart; both are logged, neither
    stops the capture.
    """

    def __init__(self, path: Path, limits: Limits, log: Log) -> None:
        """:param path: the file, one per exchange.
        :param limits: what the exchange documents.
        """
        self._allowed = max(1, math.floor(limits.connections * SHARE))
        self._window_s = limits.connections_window_s
        self._file = KeptFile(
            path,
            log,
            missing="no connection attempts on record",
            unreadable="the record of connection attempts can't be read: counted as none made",
            unwritable="connection attempts can't be recorded: a restart will not know of them; "
            "make room, or the folder writable",
        )
        self._lock = threading.Lock()
        self._made: deque[float] = deque(maxlen=self._allowed)
        self._held_at = 0.0
        self._hold_s = 0.0
        self._load()

    def reserve(self, now: float) -> float:
        """Seconds to wait, after which to ask again; 0: go, the attempt is on record.

        :param now: Unix time in seconds.
        """
        with self._lock:
            self._settle(now)
            wait_s = max(self._held_at + self._hold_s - now, self._next_free(now) - now, 0.0)
            if wait_s == 0.0:
                self._made.append(now)
                self._save()
            return wait_s

    def hold(self, now: float, seconds: float) -> None:
        """No attempt for so long, whoever asks: the exchange said ``Retry-After``. At most
        `MAX_HOLD_S`; never shortens a hold."""
        with self._lock:
            self._settle(now)
            if now + seconds > self._held_at + self._hold_s:
                self._held_at, self._hold_s = now, min(seconds, MAX_HOLD_S)
                self._save()

    def _settle(self, now: float) -> None:
        """Forgets what has left the window, and what a clock set back left in the future."""
        if self._made and self._made[-1] > now:
            self._made = deque((min(t, now) for t in self._made), self._allowed)
        while self._made and self._made[0] <= now - self._window_s:
            self._made.popleft()
        self._held_at = min(self._held_at, now)

    def _next_free(self, now: float) -> float:
        """When the next attempt may be made."""
        made = self._made
        if len(made) >= self._allowed:
            return made[0] + self._window_s
        if len(made) >= (self._allowed + 1) // 2:
            return made[-1] + 2 * self._window_s / self._allowed
        return now

    def _load(self) -> None:
        if kept := self._file.read(_read):
            made, self._held_at, self._hold_s = kept
            self._made.extend(sorted(made))

    def _save(self) -> None:
        """A crash of the host may tear the file, and then the exchange's window has mostly
        passed."""
        self._file.write(
            {
                "made": list(self._made),
                "held_at": self._held_at,
                "hold_s": self._hold_s,
                "boot": _BOOT,
                "booted_s": _BOOTED_S,
            }
        )


def _read(content: Any) -> tuple[list[float], float, float]:
    """The attempts made, when a hold began and how long it is, by this process's clock."""
    made = [_time(t) for t in content["made"]]
    held_at, hold_s = _time(content["held_at"]), _time(content["hold_s"])
    same_boot = content.get("boot") == _BOOT
    set_by_s = _BOOTED_S - _time(content["booted_s"]) if same_boot else 0.0
    return [t + set_by_s for t in made], held_at + set_by_s, min(hold_s, MAX_HOLD_S)


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"not a time: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"not a time: {value!r}")
    return float(value)


class Backoff:
    """Full jitter: a wait drawn from 0 to a bound that doubles with each attempt in vain.

    `reset` belongs to *data* received, never to a connection made: a server that accepts and
    drops would be asked without end otherwise.
    """

    BASE_S = 0.5

    def __init__(self, cap_s: float, random: Random) -> None:
        self._cap_s = cap_s
        self._random = random
        self._vain = 0

    def next_s(self) -> float:
        """How long to wait before the attempt that comes now."""
        bound_s = min(self._cap_s, self.BASE_S * 2 ** min(self._vain, 64))
        self._vain += 1
        return self._random.uniform(0.0, bound_s)

    def reset(self) -> None:
        """Data came: the next wait is drawn from the first bound again."""
        self._vain = 0
