"""What an exchange's reader and serializer together may use, and the keys that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from feedmono.config.values import Choice, Duration, Key, Number, Size

_MIB = 1024**2
_TIB = 1024**4


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one exchange, for both of its workers together."""

    cpu: float
    """Cores."""
    cpu_action: str
    """``warn``, or ``throttle``: the serializer is slowed while the ring has room."""
    memory_bytes: int
    memory_patience_s: float
    """How long more is borne before the larger of the two is restarted."""


KEYS: Mapping[str, Key] = {
    "cpu": Key("budget.cpu", Number(0.01, 1024), "CPU"),
    "cpu_action": Key("budget.cpu_action", Choice(("warn", "throttle")), "CPU_ACTION"),
    "memory_bytes": Key("budget.memory", Size(_MIB, _TIB), "MEMORY"),
    "memory_patience_s": Key("budget.memory_patience", Duration("1 s", "1 d"), "MEMORY_PATIENCE"),
}
"""By the field of `Budget`: the key within an exchange's block, and the end of its variable."""
