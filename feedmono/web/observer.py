"""What the status process sees of an instance: its snapshot, its counters, its ledgers.

It only reads, and reads again only what has changed: an instance at rest costs it nothing but a
look at a few files' times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feedmono.config import Config
from feedmono.counters import Counters, Field
from feedmono.delivery import ledger_file
from feedmono.delivery.holes import State
from feedmono.delivery.ids import Ids
from feedmono.delivery.ledger_file import LedgerError
from feedmono.supervision.snapshot import FILE, ExchangeStatus, Snapshot
from feedmono.workers import Shared

# However often somebody asks, a ledger is read only so often.
_LEDGER_S = 1.0

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class SymbolView:
    """What the ledger holds of a symbol."""

    trades: int
    """Delivered, of the present epoch of its ids."""
    newest: tuple[int, int]
    """Epoch and id of the newest trade: moves with each new one."""
    newest_us: int
    """Its time at the exchange, Unix time."""
    holes_open: int
    open_trades: int
    oldest_hole_us: int | None
    """When the oldest of the open holes was found, Unix time."""

    @classmethod
    def of(cls, ids: Ids) -> SymbolView:
        missing = holes_open = open_trades = 0
        oldest_us: int | None = None
        for hole in ids.holes:
            missing += hole.size
            if hole.state is State.OPEN:
                holes_open += 1
                open_trades += hole.size
                oldest_us = hole.opened_us if oldest_us is None else min(oldest_us, hole.opened_us)
        trades = ids.last_id - ids.first_id + 1 - missing - ids.folded
        newest = (ids.epoch, ids.last_id)
        return cls(trades, newest, ids.newest_us, holes_open, open_trades, oldest_us)


@dataclass(frozen=True, slots=True)
class ExchangeView:
    """An enabled exchange."""

    status: ExchangeStatus | None
    """As the supervisor sampled it last."""
    counters: Counters | None
    """The page itself: what it says is of now. None: it can't be opened."""
    symbols: Mapping[str, SymbolView] = field(default_factory=dict)
    """Of the configured symbols, those that the ledger knows."""
    ledger_trouble: str = ""
    """Why the ledger can't be read."""

    def count(self, counter: Field) -> int:
        """The counter now; 0 where nothing is known."""
        if self.counters is not None:
            return self.counters[counter]
        return self.status.counts.get(counter.name.lower(), 0) if self.status else 0


@dataclass(frozen=True, slots=True)
class View:
    """The instance, as far as it can be seen."""

    at_s: float
    """Unix time of the look."""
    monotonic_s: float
    """The same by a clock that nobody sets."""
    snapshot: Snapshot | None
    snapshot_age_s: float
    """How long ago it was last seen to change."""
    trouble: str
    """Why there is no snapshot."""
    exchanges: Mapping[str, ExchangeView]
    """The enabled ones, by name."""


class Observer:
    """Looks at the instance that runs with *config*."""

    def __init__(self, config: Config) -> None:
        self._path = config.state_dir / FILE
        self._snapshot: Snapshot | None = None
        self._trouble = "not looked yet"
        self._stamp: _Stamp | None = None
        self._is_read = False
        self._changed_s = time.monotonic()
        self._parts = {
            exchange.name: _Part(Shared.of(config, exchange.name), frozenset(exchange.symbols))
            for exchange in config.enabled_exchanges
        }

    def notice(self) -> None:
        """Notices whether the snapshot was renewed, and does not read it."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp, self._is_read = stamp, False
            self._changed_s = time.monotonic()

    def look(self) -> View:
        """What there is now."""
        self.notice()
        if not self._is_read:
            self._read_snapshot()
        now_s = time.monotonic()
        statuses = {e.name: e for e in self._snapshot.exchanges} if self._snapshot else {}
        for part in self._parts.values():
            part.look_at_counters()
            part.look_at_ledger(now_s)
        return View(
            time.time(),
            now_s,
            self._snapshot,
            now_s - self._changed_s,
            self._trouble,
            {name: part.view(statuses.get(name)) for name, part in self._parts.items()},
        )

    def _read_snapshot(self) -> None:
        """What can't be read is tried again; until then there is none, not an old one."""
        try:
            self._snapshot = Snapshot.from_json(self._path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            self._snapshot = None
            self._trouble = f"{self._path} can't be read: {_reason(error)}"
            return
        self._is_read, self._trouble = True, ""


class _Part:
    """What there is of one exchange."""

    def __init__(self, shared: Shared, symbols: frozenset[str]) -> None:
        self._shared = shared
        self._wanted = symbols
        self._counters: Counters | None = None
        self._page: tuple[int, int] | None = None
        self._symbols: Mapping[str, SymbolView] = {}
        self._ledger_stamp: tuple[_Stamp | None, ...] | None = None
        self._ledger_s = float("-inf")
        self._ledger_trouble = ""

    def view(self, status: ExchangeStatus | None) -> ExchangeView:
        return ExchangeView(status, self._counters, self._symbols, self._ledger_trouble)

    def look_at_counters(self) -> None:
        """Opens the page again if another one has its name; while none has, the old one is it."""
        try:
            there = self._shared.counters.stat()
            if (there.st_dev, there.st_ino) == self._page:
                return
            self._counters = Counters(self._shared.counters, read_only=True)
            self._page = (there.st_dev, there.st_ino)
        except (OSError, ValueError):
            return

    def look_at_ledger(self, now_s: float) -> None:
        path = self._shared.ledger
        stamp = tuple(_stamp(p) for p in (path, path.with_name(f"{path.name}-wal")))
        if stamp == self._ledger_stamp or now_s - self._ledger_s < _LEDGER_S:
            return
        self._ledger_s = now_s
        try:
            content = ledger_file.read(path)
        except LedgerError as error:
            self._ledger_trouble = str(error)
            return
        known = content.symbols if content else {}
        self._symbols = {s: SymbolView.of(ids) for s, ids in known.items() if s in self._wanted}
        # Taken before the read: what was written meanwhile is read the next time.
        self._ledger_stamp, self._ledger_trouble = stamp, ""


def _stamp(path: Path) -> _Stamp | None:
    """What changes when a file is written or replaced; None if there is none."""
    try:
        there = os.stat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
