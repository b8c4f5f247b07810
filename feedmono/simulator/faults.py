"""The faults that the simulator can do: their names, their values, their dice.

A fault on trades happens with a probability whose dice are a hash of (seed, fault, symbol,
id): the same trades have the same faults in every run, however they were spread over time.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

Value = float | bool | str | frozenset[str]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)?", re.ASCII)
MAX_OVERSIZED_MIB = 64


class Setting(NamedTuple):
    """One fault as it was asked for, checked."""

    kind: str
    value: Value


class Kind(NamedTuple):
    """What a fault's value may be, and what the fault does."""

    parse: Callable[[str], Value]
    help: str


def _duration_s(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is wanted, such as 5s, 500ms or 2m")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def _interval_s(text: str) -> float:
    value = 0.0 if text == "false" else _duration_s(text)
    if value < 0:
        raise ValueError("a duration of 0 (never) or more is wanted")
    return value


def _probability(text: str) -> float:
    try:
        value = {"true": 1.0, "false": 0.0}.get(text, -1.0)
        value = float(text) if value < 0 else value
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError("a probability from 0 to 1 is wanted")
    return value


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false is wanted")
    return text == "true"


def _rate(text: str) -> float:
    try:
        value = 0.0 if text == "false" else float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < math.inf:
        raise ValueError("bytes per second are wanted; 0 lifts the limit")
    return value


def _symbols(text: str) -> frozenset[str]:
    return frozenset(s for s in text.split("+") if s) if text != "false" else frozenset()


def _status(text: str) -> float:
    """The HTTP status that answers an upgrade; 1: closed without one, 0: accepted."""
    if text in ("true", "false"):
        return 1.0 if text == "true" else 0.0
    if not re.fullmatch(r"[45]\d\d", text, re.ASCII):
        raise ValueError("true, false or an HTTP status from 400 to 599 is wanted")
    return float(text)


def _close(text: str) -> str:
    code, at, interval = text.partition("@")
    if text == "false":
        return ""
    if not re.fullmatch(r"[1-4]\d\d\d", code, re.ASCII) or not at:
        raise ValueError("a close code and a mean time are wanted, such as 1008@30s")
    _interval_s(interval)
    return text


def _mib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_OVERSIZED_MIB:
        raise ValueError(f"MiB above 0 and up to {MAX_OVERSIZED_MIB} are wanted")
    return value


KINDS: Mapping[str, Kind] = {
    "cut": Kind(_interval_s, "on average each TIME a connection is cut, perhaps mid-frame"),
    "half-open": Kind(_interval_s, "on average each TIME a connection goes silent unclosed"),
    "close": Kind(_close, "CODE@TIME: on average each TIME a connection is closed with CODE"),
    "shutdown": Kind(_interval_s, "each TIME a notice to all, who are closed 3 s later"),
    "mute": Kind(_probability, "P that a new connection is accepted and never answered"),
    "refuse-connections": Kind(_status, "true, or the HTTP status that answers upgrades"),
    "slow": Kind(_rate, "BYTES a second and connection at most"),
    "garbage": Kind(_probability, "P that a frame of garbage stands before a trade's"),
    "oversized": Kind(_probability, "P that a frame of oversized-mib stands before a trade's"),
    "oversized-mib": Kind(_mib, "how large those are; 8 unless set"),
    "fragmented": Kind(_probability, "P that a frame is cut into fragments around a ping"),
    "lose": Kind(_probability, "P that a trade is not sent (REST has it)"),
    "repeat": Kind(_probability, "P that a trade is sent again a few trades later"),
    "reorder": Kind(_probability, "P that a trade is sent a few trades later"),
    "refuse": Kind(_symbols, "SYMBOL+SYMBOL: whose subscription is refused"),
    "skew": Kind(_duration_s, "TIME by which the exchange's clock is ahead; may be negative"),
    "rest-429": Kind(_probability, "P that a REST request is told to back off (1 s)"),
    "rest-418": Kind(_probability, "P that a REST request is told of a ban (3 s)"),
    "rest-5xx": Kind(_probability, "P that a REST request fails"),
    "rest-slow": Kind(_interval_s, "TIME that each REST answer takes"),
    "rest-wrong": Kind(_probability, "P that REST trades are of wrong symbol, ids or order"),
    "rest-none": Kind(_probability, "P that REST trades are empty, or the connection closes"),
    "pause": Kind(_flag, "true: no trades are made until it is false"),
}


def setting(kind: str, value: object) -> Setting:
    """A fault from its name and its value: text, or a JSON number, boolean or null (true).

    :raises ValueError: no such fault, or no such value of it; says what is allowed.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown fault {kind!r}{hint or '.'} Known: {', '.join(KINDS)}")
    if value is None or isinstance(value, bool):
        value = "false" if value is False else "true"
    text = str(value)
    try:
        return Setting(kind, KINDS[kind].parse(text))
    except ValueError as error:
        raise ValueError(f"fault {kind}={text[:60]}: {error}") from None


def parse(spec: str) -> tuple[Setting, ...]:
    """The faults of a comma-separated ``kind=value`` text.

    :raises ValueError: with every mistake in it.
    """
    settings, mistakes = [], []
    for part in filter(None, (p.strip() for p in spec.split(","))):
        kind, _, value = part.partition("=")
        try:
            settings.append(setting(kind, value or None))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return tuple(settings)


@dataclass(slots=True)
class Faults:
    """What is to go wrong, as set now, and how often it did. A kind's field has its name."""

    seed: int
    cut: float = 0.0
    half_open: float = 0.0
    close: str = ""
    shutdown: float = 0.0
    mute: float = 0.0
    refuse_connections: float = 0.0
    slow: float = 0.0
    garbage: float = 0.0
    oversized: float = 0.0
    oversized_mib: float = 8.0
    fragmented: float = 0.0
    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    refuse: frozenset[str] = frozenset()
    skew: float = 0.0
    rest_429: float = 0.0
    rest_418: float = 0.0
    rest_5xx: float = 0.0
    rest_slow: float = 0.0
    rest_wrong: float = 0.0
    rest_none: float = 0.0
    pause: bool = False
    done: Counter[str] = field(default_factory=Counter)
    """How often each kind was done."""

    def set(self, wanted: Setting) -> None:
        """From now on *wanted* holds."""
        setattr(self, wanted.kind.replace("-", "_"), wanted.value)

    @property
    def touch_trades(self) -> bool:
        """Whether trades or their frames may be harmed, so that each must be looked at."""
        return bool(
            self.lose
            or self.repeat
            or self.reorder
            or self.garbage
            or self.oversized
            or self.fragmented
        )

    @property
    def oversized_bytes(self) -> int:
        return int(self.oversized_mib * 2**20)

    def happens(self, kind: str, key: str) -> bool:
        """Throws the dice of a fault for *key* (a trade, a request), and counts it."""
        probability: float = getattr(self, kind.replace("-", "_"))
        if not probability or self.dice(kind, key) >= probability:
            return False
        self.done[kind] += 1
        return True

    def dice(self, kind: str, key: str) -> float:
        """A number from 0 to 1 that depends on the seed, *kind* and *key* alone."""
        name = f"{self.seed}/{kind}/{key}".encode()
        return int.from_bytes(blake2b(name, digest_size=7).digest(), "big") / 2**56

    def generator(self, purpose: str) -> random.Random:
        """Randomness for what has no key of its own, seeded."""
        return random.Random(f"{self.seed}/{purpose}")
