"""The ledger against what it keeps, over random sequences of events, commits and crashes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from ledger_rig import (
    NOW_US,
    RING,
    SECOND_US,
    SYMBOLS,
    commit,
    content,
    kept,
    ledger_path,
    opened,
    trade,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.ids import Ids
from feedmono.delivery.seen import Seen
from feedmono.trade import BACKFILL, SNAPSHOT, STREAM, Trade

__all__ = ["ledger_path"]

SEEDS = 60


class Run:
    """Random events, commits and crashes, beside `Ids` that are told the same."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.ledger = opened(path)
        self.ids: dict[str, Ids] = {}
        self.committed: dict[str, dict[str, object]] = {}
        self.number = -1
        self.now_us = NOW_US
        self.epochs = 0

    def step(self) -> None:
        operation = self.chance.choices(
            (self._deliver, self._miss, self._prove, self._give_up, self._commit, self._crash),
            (12, 1, 2, 1, 4, 1),
        )[0]
        operation()
        assert kept(self.ledger.symbols) == kept(self.ids)

    def _trade(self, symbol: str, newer_us: int) -> Trade:
        chance, ids = self.chance, self.ids.get(symbol)
        if ids is None:
            return trade(chance.randrange(100, 200), symbol)
        numbers = [ids.last_id + 1, ids.last_id + 1, ids.last_id + chance.randrange(1, 6)]
        numbers.append(max(0, chance.randrange(ids.first_id - 20, ids.last_id + 60)))
        if newer_us:
            numbers = [max(0, chance.randrange(ids.first_id - 20, ids.last_id + 1))]
        elif ids.holes:
            hole = chance.choice(ids.holes)
            numbers.append(chance.randint(hole.first_id, hole.last_id))
        start_us = ids.epoch_us - ids.epoch_us % SECOND_US
        return trade(chance.choice(numbers), symbol, start_us + newer_us)

    def _deliver(self) -> None:
        newer_us = self.chance.choice((0,) * 8 + (2 * SECOND_US,))
        symbols = (self.chance.choice(SYMBOLS),) if newer_us else SYMBOLS
        frame = [
            self._trade(self.chance.choice(symbols), newer_us)
            for _ in range(self.chance.randrange(1, 5))
        ]
        origin = self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
        max_trades, sequence = self.chance.choice((3, 100)), self.chance.randrange(10**6)
        self.ledger.deliver(frame, origin, "gap", self.now_us, max_trades, sequence)
        for told_trade in sorted(frame, key=lambda each: each.trade_id):
            ids = self.ids.get(told_trade.symbol)
            if ids is None:
                self.ids[told_trade.symbol] = ids = Ids(told_trade)
                ids.sequence = sequence
            else:
                ids.add(told_trade, origin, "gap", self.now_us, max_trades, sequence)
                self.epochs += len(ids.ended)
                ids.ended.clear()

    def _range(self) -> tuple[str, int, int]:
        symbol = self.chance.choice(SYMBOLS)
        ids = self.ids.get(symbol)
        if ids is None:
            return symbol, 0, 1000
        first = self.chance.randrange(ids.first_id, ids.last_id + 1)
        return symbol, first, first + self.chance.randrange(30)

    def _miss(self) -> None:
        symbol, number, time_us = self._range()
        self.ledger.miss(symbol, number, "dead", self.now_us, time_us)
        if symbol in self.ids:
            self.ids[symbol].miss(number, "dead", self.now_us, time_us)

    def _prove(self) -> None:
        symbol, first, last = self._range()
        self.now_us += self.chance.choice((0, SECOND_US))
        self.ledger.prove(symbol, first, last, self.now_us, SECOND_US)
        if symbol in self.ids:
            self.ids[symbol].prove(first, last, self.now_us, SECOND_US)

    def _give_up(self) -> None:
        symbol, first, last = self._range()
        self.ledger.give_up(symbol, first, last)
        if symbol in self.ids:
            self.ids[symbol].give_up(first, last)

    def _commit(self) -> None:
        self.number += 1
        commit(self.ledger, self.number)
        self.committed = kept(self.ids)
        found = content(self.path)
        assert kept(found.symbols) == self.committed
        self._check(found.rings.get(RING), found.sequence, found.mark)

    def _crash(self) -> None:
        self.ledger.close()
        self.ledger = opened(self.path)
        assert kept(self.ledger.symbols) == self.committed
        self._check(self.ledger.position(RING), self.ledger.sequence, self.ledger.mark)
        self.ids = self.ledger.copy()

    def _check(self, position: int | None, sequence: int, mark: Mapping[str, int] | None) -> None:
        if self.number < 0:
            assert (position, sequence, mark) == (None, -1, None)
        else:
            expected = (10 * self.number, self.number, {"records": self.number})
            assert (position, sequence, mark) == expected


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bounds", [(30, 5, 3, 10_000), (30, 5, 2, 4)], ids=["many", "few holes"])
def test_any_sequence_of_events_commits_and_crashes_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, ...], full: bool
) -> None:
    names = ("FAR", "NEAR", "MAX_ISLANDS", "MAX_HOLES")
    for name, bound in zip(names, bounds, strict=True):
        monkeypatch.setattr(ids_module, name, bound)
    epochs = 0
    for seed in range(SEEDS * 10 if full else SEEDS):
        run = Run(tmp_path / str(seed) / "x.ledger", seed)
        for step in range(60):
            try:
                run.step()
            except Exception as error:
                raise AssertionError(f"seed {seed}, step {step}: {error}") from error
        run.ledger.close()
        epochs += run.epochs
    assert epochs > SEEDS // 2


@pytest.mark.timeout(600)
def test_what_is_handed_on_leaves_the_ledger_with_what_was_seen(path: Path, full: bool) -> None:
    """The ledger is told of no repeat, and of all else later."""
    ledger = opened(path)
    epochs = 0
    for seed in range(SEEDS * 50 if full else SEEDS * 5):
        chance = random.Random(seed)
        ledger.symbols = {"BTC/USD": Ids(trade(100))}
        ids = ledger.symbols["BTC/USD"]
        ids.sequence = 0
        seen = Seen(ledger.copy(), 10)
        for sequence in range(1, 40):
            newer_us = chance.choice((0, 0, 0, 1, 2)) * SECOND_US
            start_us = ids.newest_us // SECOND_US * SECOND_US + newer_us
            numbers = chance.choices(range(90, 130), k=chance.randrange(1, 4))
            frame = [
                trade(chance.choice((number, ids.last_id + 1)), start_us=start_us)
                for number in numbers
            ]
            origin = chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
            seen.cause = ""
            admitted = seen.admit(frame, origin, sequence, NOW_US)
            if admitted:
                ledger.deliver(admitted, origin, seen.cause, NOW_US, 10, sequence)
            for dead in admitted:
                if chance.random() < 0.1:
                    seen.miss(dead, "dead", NOW_US)
                    ledger.miss(dead.symbol, dead.trade_id, "dead", NOW_US, dead.time_us)
            assert kept(ledger.symbols) == kept(seen.symbols), f"seed {seed}, frame {sequence}"
        epochs += ids.epoch
    assert epochs > SEEDS
