"""One symbol's ids, epoch by epoch: those in the sink against those that the ledger tells of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from feedmono.delivery.holes import Hole
from feedmono.delivery.ids import EPOCH_US, FAR, NEAR, Epoch, Ids
from feedmono.sinks.base import StoredRecord
from feedmono.trade import BACKFILL, ORIGINS
from feedmono.verify.bitmap import Bitmap
from feedmono.verify.findings import (
    BEYOND,
    DOUBLED,
    MAX_NAMED,
    MISSING,
    UNKNOWN,
    Findings,
    Named,
    SymbolCount,
)

Range = tuple[int, int]
"""Ids from one to another, both included."""


class SymbolCheck:
    """Takes a symbol's records in the sink's order, and finds at last which are not there."""

    def __init__(self, symbol: str, findings: Findings) -> None:
        self.count = SymbolCount(symbol)
        self._findings = findings
        self._have: dict[int, Bitmap] = {}
        """The sink's ids by epoch."""
        self._floor: tuple[int, int] | None = None
        """Epoch and id of the first record that was not backfilled."""
        self._ids: Ids | None = None

    def learn(self, ids: Ids, epochs: Sequence[Epoch]) -> None:
        """Takes what the ledger tells now."""
        self._ids = ids
        self._ended = _ended(ids, epochs)
        epochs_us = [*(ended.epoch_us for ended in self._ended), ids.epoch_us]
        # All trades of the epoch before are older than that.
        self._bounds = [epoch_us - EPOCH_US + 1 for epoch_us in epochs_us]
        self._first_epoch = self._ended[0].epoch if self._ended else ids.epoch
        self._known = range(0)

    def take(self, trade_id: int, stored: StoredRecord) -> None:
        """Holds a trade against what was learned last."""
        assert stored.record is not None
        epoch = self._epoch_at(stored.record.get("exchange_timestamp_us")) if self._ids else 0
        if epoch is None:
            self.count.forgotten += 1
            return
        if (have := self._have.get(epoch)) is None:
            have = self._have[epoch] = Bitmap()
        if not have.add(trade_id):
            self._findings.record(DOUBLED, self.count.symbol, trade_id, stored)
        elif doubt := self._doubt(epoch, trade_id):
            self._findings.record(UNKNOWN, self.count.symbol, trade_id, stored, doubt)
        if self._floor is None and stored.record.get("origin") != ORIGINS[BACKFILL]:
            self._floor = epoch, trade_id

    def _epoch_at(self, time_us: object) -> int | None:
        """The epoch that a trade of that time belongs to; None: the ledger has forgotten it."""
        if len(self._bounds) == 1 and not self._first_epoch:
            return 0
        at = bisect_right(self._bounds, time_us if isinstance(time_us, int) else 0) - 1
        if at < 0:
            return None if self._first_epoch else 0
        return self._first_epoch + at

    def _doubt(self, epoch: int, trade_id: int) -> str:
        """Why the ledger does not have that id as delivered; empty if it has."""
        ids = self._ids
        if ids is None:
            return "the ledger does not know the symbol"
        if epoch != ids.epoch:
            ended = self._ended[epoch - self._first_epoch]
            # Ids far from the others are not remembered of an ended epoch.
            if ended.first_id - NEAR <= trade_id <= ended.last_id + FAR:
                return _outside(trade_id, ended.first_id, ended.last_id)
            return ""
        # Nearly every id lies in the same stretch between two holes as the one before it.
        if trade_id in self._known or trade_id in ids.islands:
            return ""
        if outside := _outside(trade_id, ids.first_id, ids.last_id):
            return outside
        at = bisect_right(ids.holes, trade_id, key=_first_id)
        low = ids.first_id
        if at:
            hole = ids.holes[at - 1]
            if trade_id <= hole.last_id:
                return f"in a hole that is {hole.state.name}"
            low = hole.last_id + 1
        high = ids.holes[at].first_id if at < len(ids.holes) else ids.last_id + 1
        self._known = range(low, high)
        return ""

    # --- what is not there

    def look_for(self, ids: Ids, epochs: Sequence[Epoch], complete: bool) -> None:
        """Finds what was delivered and did not come.

        :param ids: what was delivered before anything was read.
        :param complete: whether the sink still has its beginning.
        """
        for ended in _ended(ids, epochs):
            self._look_for_ended(ended, complete)
        removed, missing = self._absent(ids, complete)
        self.count.removed += _size(_without(removed, ids))
        tolerated = ids.folded
        for first, last in _without(missing, ids):
            let = min(tolerated, last + 1 - first, max(ids.folded_until - first, 0))
            tolerated -= let
            self.count.folded += let
            if first + let <= last:
                self._findings.missing(self.count.symbol, first + let, last)
        have = self._have.get(ids.epoch, ())
        for island in ids.islands:
            if island in have:
                continue
            if complete:
                self._findings.missing(self.count.symbol, island, island)
            else:
                self.count.removed += 1

    def _look_for_ended(self, ended: Epoch, complete: bool) -> None:
        """The same for an epoch of which only the number of missing ids is remembered."""
        removed, absent = self._absent(ended, complete)
        self.count.removed += _size(removed)
        ranges = list(absent)
        missing = _size(ranges) - ended.missing
        if missing > 0:
            reason = f"of epoch {ended.epoch}; {ended.missing:,} of its ids were not delivered"
            for first, last in islice(ranges, MAX_NAMED):
                named = Named(first, last, "", reason)
                self._findings.add(MISSING, self.count.symbol, missing, named)
                missing = 0

    def _absent(self, told: Ids | Epoch, complete: bool) -> tuple[Iterator[Range], Iterator[Range]]:
        """What the sink does not have between an epoch's first and last id: first what may have
        been removed with its beginning, then the rest."""
        first_id, behind = told.first_id, told.last_id + 1
        if complete:
            floor = first_id
        elif self._floor is None or self._floor[0] > told.epoch:
            floor = behind
        else:
            floor = max(first_id, self._floor[1]) if self._floor[0] == told.epoch else first_id
        have = self._have.get(told.epoch, Bitmap())
        return have.absent(first_id, floor - 1), have.absent(floor, behind - 1)

    def result(self, running: bool) -> SymbolCount:
        """:param running: whether what is newer than the ledger is in flight."""
        if running:
            self.count.in_flight = self._findings.take_back(BEYOND, self.count.symbol)
        current = self._have.get(0 if self._ids is None else self._ids.epoch)
        if current is not None:
            self.count.first_id, self.count.last_id = current.ends() or (None, None)
        return self.count


def _ended(ids: Ids, epochs: Sequence[Epoch]) -> list[Epoch]:
    """Those that had ended when *ids* was read, a moment before."""
    return [epoch for epoch in epochs if epoch.epoch < ids.epoch]


def _first_id(hole: Hole) -> int:
    return hole.first_id


def _outside(trade_id: int, first_id: int, last_id: int) -> str:
    if trade_id < first_id:
        return f"below the ledger's first id {first_id:,}"
    return f"above the ledger's last id {last_id:,}" if trade_id > last_id else ""


def _without(ranges: Iterable[Range], ids: Ids) -> Iterator[Range]:
    """Ranges of ids, less those that are in holes."""
    for begin, last in ranges:
        first = begin
        for hole in ids.holes_within(first, last):
            if first < hole.first_id:
                yield first, hole.first_id - 1
            first = hole.last_id + 1
        if first <= last:
            yield first, last


def _size(ranges: Iterable[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges)
