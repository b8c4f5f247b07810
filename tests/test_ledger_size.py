"""The size of the ledger: a week of trades and as many holes as there can be leave a small one."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

import pytest
from ledger_rig import (
    NOW_US,
    SECOND_US,
    START_US,
    commit,
    content,
    deliver,
    kept,
    ledger_path,
    opened,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.holes import State
from feedmono.delivery.ledger import Ledger
from feedmono.trade import BACKFILL, BUY, STREAM, Trade

__all__ = ["ledger_path"]

IDS = 1_000_000


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _disk_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


class Week:
    """Trades of five symbols; now and then some are missing, and most of those come later."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.chance = random.Random(11)
        self.symbols = [f"SYM{n}/USD" for n in range(5)]
        self.next_ids = dict.fromkeys(self.symbols, 1000)
        self.settled = dict.fromkeys(self.symbols, 0)
        self.delivered = 0

    def go_on(self, count: int) -> None:
        """So many ids, then something becomes of the newest holes."""
        deliver, chance = self.ledger.deliver, self.chance
        done = self.delivered + count
        while self.delivered < done:
            symbol = chance.choice(self.symbols)
            number = self.next_ids[symbol]
            run = min(int(chance.expovariate(1 / 200)) + 1, done - self.delivered)
            for each in range(number, number + run):
                told_trade = Trade(symbol, each, "2688.30", "0.1", BUY, START_US + each)
                deliver((told_trade,), STREAM, "gap", NOW_US, 10**5, each)
            self.next_ids[symbol] = number + run + min(int(chance.paretovariate(1)), 1000)
            self.delivered += run
        for symbol in self.symbols:
            self._settle(symbol)

    def _settle(self, symbol: str) -> None:
        ids = self.ledger.symbols[symbol]
        for hole in ids.holes_within(self.settled[symbol], ids.last_id):
            first, last = hole.first_id, hole.last_id
            fate = self.chance.random()
            if fate < 0.8:
                page = [
                    Trade(symbol, each, "1", "1", BUY, START_US + each)
                    for each in range(first, last + 1)
                ]
                self.ledger.deliver(page, BACKFILL, "gap", NOW_US, 10**5, 0)
            elif fate < 0.85:
                late = Trade(symbol, last, "1", "1", BUY, START_US + last)
                self.ledger.deliver([late], STREAM, "gap", NOW_US, 10**5, 0)
            elif fate < 0.9:
                for now_us in (NOW_US, NOW_US + SECOND_US):
                    self.ledger.prove(symbol, first, last, now_us, SECOND_US)
            elif fate < 0.95:
                self.ledger.give_up(symbol, first, last)
        self.settled[symbol] = ids.last_id


@pytest.mark.timeout(600)
def test_a_week_of_trades_leaves_a_small_ledger(path: Path, full: bool) -> None:
    ledger = opened(path)
    week = Week(ledger)
    begun_s = time.monotonic()
    total = IDS * 10 if full else IDS
    step = 20_000
    resident = 0
    commits_s = []
    for number in range(total // step):
        week.go_on(step)
        commit_s = time.monotonic()
        commit(ledger, number)
        commits_s.append(time.monotonic() - commit_s)
        if number == 10:
            resident = _resident_bytes()
    took_s = time.monotonic() - begun_s
    grown = _resident_bytes() - resident
    size = _disk_bytes(path)
    read_s = time.monotonic()
    found = content(path)
    read_s = time.monotonic() - read_s
    assert kept(found.symbols) == kept(ledger.symbols)
    holes = sum(len(ids.holes) for ids in found.symbols.values())
    ledger.close()
    closed = _disk_bytes(path)
    print(
        f"\n{total:,} ids in {took_s:.1f} s, {holes:,} holes left: {size / 1e6:.1f} MB, closed "
        f"{closed / 1e6:.1f} MB; read in {read_s * 1e3:.0f} ms; commits up to "
        f"{max(commits_s) * 1e3:.0f} ms; memory grew by {grown / 1e6:.1f} MB",
        file=sys.stderr,
    )
    assert {hole.state for ids in found.symbols.values() for hole in ids.holes} == set(State)
    assert sum(ids.backfilled for ids in found.symbols.values()) > total // 1000
    assert size < 20_000_000
    assert read_s < 1
    assert grown < 50_000_000


def test_as_many_holes_as_there_can_be_leave_a_small_ledger(path: Path) -> None:
    ledger = opened(path)
    for symbol in (f"SYM{n}/USD" for n in range(5)):
        deliver(ledger, *range(0, 3 * ids_module.MAX_HOLES, 2), symbol=symbol)
    begun_s = time.monotonic()
    commit(ledger, 0)
    commit_s = time.monotonic() - begun_s
    begun_s = time.monotonic()
    found = content(path)
    read_s = time.monotonic() - begun_s
    assert sum(len(ids.holes) for ids in found.symbols.values()) == 5 * ids_module.MAX_HOLES
    size = _disk_bytes(path)
    ledger.close()
    begun_s = time.monotonic()
    assert kept(opened(path).symbols) == kept(found.symbols)
    open_s = time.monotonic() - begun_s
    print(
        f"\n{5 * ids_module.MAX_HOLES:,} holes: {size / 1e6:.1f} MB; commit {commit_s * 1e3:.0f} "
        f"ms, read {read_s * 1e3:.0f} ms, open and compare {open_s * 1e3:.0f} ms",
        file=sys.stderr,
    )
    assert size < 20_000_000
