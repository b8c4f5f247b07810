"""What a comparison found: counts per symbol, differences with examples, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MISSING_A = "missing in A"
MISSING_B = "missing in B"
DIFFERENT = "different"
ORDER = "out of order"
DOUBLED_A = "doubled in A"
DOUBLED_B = "doubled in B"

KINDS: Mapping[str, str] = {
    MISSING_A: "B has them, A does not",
    MISSING_B: "A has them, B does not",
    DIFFERENT: "both have them, with other values",
    ORDER: "B has them at another place in the symbol's sequence than A",
    DOUBLED_A: "A has them more than once",
    DOUBLED_B: "B has them more than once",
}
"""The kinds of difference between trades, and what each means."""

# Values from there on are counted by their highest 8 bits: less than 1 % off.
_EXACT_BITS = 8


class CompareError(Exception):
    """There is nothing to compare, or it can't be; its text says what."""


class Undecoded(NamedTuple):
    """A record that could not be read as a trade."""

    place: str
    reason: str


class Values(NamedTuple):
    """What a side has of a trade; None: it does not have the field."""

    price: str | None
    quantity: str | None
    side: str | None
    time_ns: int | None


class Example(NamedTuple):
    """A trade that differs."""

    trade_id: str
    a: Values | None
    """None: A does not have it."""
    b: Values | None
    note: str
    """What about it differs."""


@dataclass(frozen=True, slots=True)
class Found:
    """Differences of one kind in one symbol."""

    kind: str
    exchange: str
    symbol: str
    count: int
    examples: Sequence[Example]
    """The first ones."""


class Latency:
    """How much later A had trades than B, in microseconds; below 0: A was first."""

    def __init__(self) -> None:
        self.count = 0
        self.min_us = 0
        self.max_us = 0
        self._counts: Counter[int] = Counter()

    def add(self, latency_us: int) -> None:
        if not self.count or latency_us < self.min_us:
            self.min_us = latency_us
        if not self.count or latency_us > self.max_us:
            self.max_us = latency_us
        self.count += 1
        size = abs(latency_us)
        drop = size.bit_length() - _EXACT_BITS
        if drop > 0:
            size = (size >> drop << drop) + (1 << drop >> 1)
        self._counts[size if latency_us >= 0 else -size] += 1

    def merge(self, other: Latency) -> None:
        if other.count:
            self.min_us = min(self.min_us, other.min_us) if self.count else other.min_us
            self.max_us = max(self.max_us, other.max_us) if self.count else other.max_us
            self.count += other.count
            self._counts.update(other._counts)

    def percentile_us(self, share: float) -> int:
        """The smallest value that at least *share* of all are not above, within 1 %."""
        below = 0
        for value in sorted(self._counts):
            below += self._counts[value]
            if below >= share * self.count:
                return min(max(value, self.min_us), self.max_us)
        return self.max_us


@dataclass(slots=True)
class SymbolResult:
    """What was counted of one symbol."""

    exchange: str
    symbol: str
    trades_a: int
    """Records, each copy counted."""
    trades_b: int
    common: int = 0
    """Trades that both have."""
    outside_a: int = 0
    """Trades that only A has, from before B began or after it ended: no difference."""
    outside_b: int = 0
    missing_a: int = 0
    missing_b: int = 0
    different: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    """In how many trades each field differs."""
    out_of_order: int | None = None
    """How many trades must be moved for both sequences to agree; None: a side has none."""
    doubled_a: int = 0
    """Copies beyond the first."""
    doubled_b: int = 0
    latency: Latency = field(default_factory=Latency)
    """Of the common trades for which both sides tell when they had them."""

    def counts(self) -> dict[str, int]:
        """By kind of difference."""
        return {
            MISSING_A: self.missing_a,
            MISSING_B: self.missing_b,
            DIFFERENT: self.different,
            ORDER: self.out_of_order or 0,
            DOUBLED_A: self.doubled_a,
            DOUBLED_B: self.doubled_b,
        }


@dataclass(frozen=True, slots=True)
class SideResult:
    """What was read of one side."""

    name: str
    trades: int
    passed_over: int
    undecoded: int
    undecoded_named: Sequence[Undecoded]
    torn: int
    seen_by: str
    """What tells when it had a trade; empty: nothing does."""


@dataclass(frozen=True, slots=True)
class Result:
    """All that a comparison tells."""

    a: SideResult
    b: SideResult
    symbols: Sequence[SymbolResult]
    found: Sequence[Found]
    compared: Sequence[str]
    """The fields that both sides have."""
    uncompared: Sequence[str]
    """Why others were not compared, a sentence each."""
    time_steps_ns: Mapping[str, int]
    """How exact the coarser side's times are, by exchange."""

    def total(self, name: str) -> int:
        """The sum of a count over all symbols."""
        return sum(getattr(symbol, name) or 0 for symbol in self.symbols)

    @property
    def latency(self) -> Latency:
        """Of all symbols."""
        total = Latency()
        for symbol in self.symbols:
            total.merge(symbol.latency)
        return total

    def kinds(self) -> Iterator[tuple[str, int]]:
        """Each kind of difference between trades, with how many there are of it."""
        for kind in KINDS:
            yield kind, sum(symbol.counts()[kind] for symbol in self.symbols)

    @property
    def equal(self) -> bool:
        """Whether something was compared, and nothing differs."""
        refused = self.a.undecoded + self.b.undecoded
        return bool(self.total("common")) and not refused and not any(n for _, n in self.kinds())
