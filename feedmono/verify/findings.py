"""What ``feedmono verify`` may find, and how it is counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from feedmono.sinks.base import StoredRecord

MISSING = "missing"
DOUBLED = "doubled"
UNKNOWN = "unknown"
BEYOND = "beyond"
INVALID = "invalid"
RAW_MISSING = "raw missing"
RAW_DOUBLED = "raw doubled"
RAW_INVALID = "raw invalid"

KINDS = {
    MISSING: "delivered, says the ledger, but not in the sink",
    DOUBLED: "in the sink more than once; the extra copies are counted",
    UNKNOWN: "in the sink, but not delivered, says the ledger",
    BEYOND: "newer than the ledger: a crash came between the sink and the ledger, and the next "
    "start delivers these frames again",
    INVALID: "can't be decoded, or makes no sense",
    RAW_MISSING: "trades whose frame is not in the sink",
    RAW_DOUBLED: "frames that are in the sink more than once",
    RAW_INVALID: "frames that can't be decoded",
}
"""What may be found, and what it means."""

MAX_NAMED = 20
"""How many of a kind are named of each symbol."""

_MAX_REASON_CHARS = 500


class Named(NamedTuple):
    """A finding: a record, or ids that are not there."""

    first_id: int | None
    """An id, or in the raw kinds a sequence; None where there is none."""
    last_id: int | None
    place: str
    """Where in the sink; empty for what is not there."""
    reason: str


@dataclass(slots=True)
class Found:
    """All findings of one kind of one symbol."""

    kind: str
    symbol: str
    """Empty: it is not known."""
    count: int = 0
    named: list[Named] = field(default_factory=list)
    """The first `MAX_NAMED`."""


class Findings:
    """All findings so far."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Found] = {}

    def add(self, kind: str, symbol: str, count: int, named: Named) -> None:
        found = self._found.setdefault((kind, symbol), Found(kind, symbol))
        found.count += count
        if len(found.named) < MAX_NAMED:
            found.named.append(named)

    def record(
        self, kind: str, symbol: str, number: int | None, stored: StoredRecord, reason: str = ""
    ) -> None:
        """Adds a record with its id or sequence."""
        named = Named(number, number, stored.place, reason[:_MAX_REASON_CHARS])
        self.add(kind, symbol, 1, named)

    def missing(self, symbol: str, first_id: int, last_id: int) -> None:
        """Adds ids that are not there."""
        self.add(MISSING, symbol, last_id - first_id + 1, Named(first_id, last_id, "", ""))

    def take_back(self, kind: str, symbol: str) -> int:
        """Forgets them; how many there were."""
        found = self._found.pop((kind, symbol), None)
        return 0 if found is None else found.count

    def all(self) -> list[Found]:
        """In the order of `KINDS`, then of the symbols."""
        order = list(KINDS)
        return sorted(self._found.values(), key=lambda f: (order.index(f.kind), f.symbol))


@dataclass(slots=True)
class SymbolCount:
    """What was read of a symbol."""

    symbol: str
    trades: int = 0
    """All records."""
    first_id: int | None = None
    """The lowest of the current epoch."""
    last_id: int | None = None
    in_flight: int = 0
    """Records of a running instance that are newer than the ledger: not judged."""
    removed: int = 0
    """Ids that are not there because the sink's beginning was removed."""
    raw_removed: int = 0
    """Trades whose frame is not there for that reason."""
    folded: int = 0
    """Ids that are not there and may have been in holes that the ledger has folded."""
    forgotten: int = 0
    """Records of epochs that the ledger has forgotten: not judged."""


@dataclass(slots=True)
class Result:
    """What was read and found of one exchange."""

    exchange: str
    symbols: Sequence[SymbolCount]
    """In their order."""
    found: Sequence[Found]
    """As `Findings.all`."""
    frames: int
    """Raw records."""
    dead_letters: int

    @property
    def trades(self) -> int:
        return sum(count.trades for count in self.symbols)
