"""Which of many alike log lines are let through, and how many were not. No I/O and no clock.

Lines are alike if name, level, exchange, worker and connection are the same, whatever stands in
their other fields: the details of a storm change from line to line. So that one sort of trouble
does not hide another of the same name, a reason that was not shown yet still passes, a few times;
numbers in it (ports, counts, times) make no new one. Memory is bounded: beyond `NAMES` names at a
time, those that come new are counted together.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

PERIOD_S = 60.0
# Of a name, this many lines are shown in a period, whatever they say ...
LINES = 10
# ... and, for reasons not shown yet, up to this many in all.
MOST_LINES = 20
NAMES = 512

_PLACE = ("exchange", "worker", "connection")
# Where an event says of which sort it is; the first that it has counts.
_REASONS = ("kind", "reason", "error", "problem")
_REASON_CHARS = 100
_NUMBER = re.compile(r"\d+")
_OTHERS = "other events"

_Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What was not shown of one name."""

    level: str
    event: str
    place: Mapping[str, object]
    """Those of exchange, worker and connection that the lines had."""
    count: int
    period_s: float


@dataclass(slots=True)
class _Name:
    """What came of one name since its first line."""

    level: str
    event: str
    place: Mapping[str, object]
    since_s: float
    shown: int = 0
    held: int = 0
    reasons: set[str] = field(default_factory=set)

    def admits(self, reason: str) -> bool:
        passes = self.shown < LINES or (self.shown < MOST_LINES and reason not in self.reasons)
        if passes:
            self.shown += 1
            self.reasons.add(reason)
        else:
            self.held += 1
        return passes

    def told(self, now_s: float) -> Held:
        elapsed_s = min(now_s - self.since_s, PERIOD_S)
        return Held(self.level, self.event, self.place, self.held, elapsed_s)


class Repeats:
    """Lines in, yes or no out. Any thread may call; times are those of one monotonic clock."""

    def __init__(self) -> None:
        self._names: dict[_Key, _Name] = {}
        """The earliest first."""
        self._lock = threading.Lock()

    def admits(self, level: str, event: str, fields: Mapping[str, object], now_s: float) -> bool:
        """Whether this line is to be shown; else it is counted. Call `over` first."""
        key = (event, level, *(str(fields.get(name)) for name in _PLACE))
        reason = next((str(fields[name]) for name in _REASONS if name in fields), "")
        with self._lock:
            name = self._names.get(key) or self._new(key, level, event, fields, now_s)
            return name.admits(_NUMBER.sub("", reason[:_REASON_CHARS]))

    def _new(
        self, key: _Key, level: str, event: str, fields: Mapping[str, object], now_s: float
    ) -> _Name:
        place = {name: fields[name] for name in _PLACE if name in fields}
        if len(self._names) >= NAMES:
            key, event, place = (_OTHERS, level), _OTHERS, {}
        return self._names.setdefault(key, _Name(level, event, place, now_s))

    def over(self, now_s: float) -> list[Held]:
        """What was held back in the periods that are over by now; told once."""
        with self._lock:
            held = []
            while self._names:
                key, name = next(iter(self._names.items()))
                if now_s - name.since_s < PERIOD_S:
                    break
                del self._names[key]
                if name.held:
                    held.append(name.told(now_s))
            return held

    def all(self, now_s: float) -> list[Held]:
        """What was held back at all and not told yet; every name begins anew."""
        with self._lock:
            names, self._names = self._names, {}
        return [name.told(now_s) for name in names.values() if name.held]
