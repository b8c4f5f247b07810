"""What the tests of the ledger share: a ledger and what is delivered to it, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from feedmono import log
from feedmono.delivery.holes import Hole
from feedmono.delivery.ids import Ids
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import Content, read
from feedmono.trade import BACKFILL, BUY, STREAM, Trade

START_US = 1_700_000_000_000_000
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000
SYMBOLS = ("BTC/USD", "ETH/USD", "XRP/USD")
RING = 1_799_999_999_000_000
GARBAGE = 9 * 10**18


class Heard:
    """Takes what is logged."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        self.errors.append((event, fields))


@pytest.fixture(name="path")
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "testex.ledger"


def trade(number: int, symbol: str = "BTC/USD", start_us: int = START_US) -> Trade:
    return Trade(symbol, number, f"{number}.50", "1.0", BUY, start_us + number % 10**9)


def opened(path: Path) -> Ledger:
    """One that nothing is wrong with."""
    heard = Heard()
    ledger = Ledger(path, log.Log(heard))
    assert heard.errors == []
    return ledger


def deliver(ledger: Ledger, *numbers: int, symbol: str = "BTC/USD", origin: int = STREAM) -> None:
    """Each in a frame of its own."""
    for number in numbers:
        ledger.deliver([trade(number, symbol)], origin, "gap", NOW_US, 10**6, number)


def commit(ledger: Ledger, number: int) -> set[str]:
    """The commit with that number: all it holds tells it."""
    return ledger.commit(RING, 10 * number, number, {"records": number})


def told(hole: Hole) -> tuple[object, ...]:
    """All that is kept of a hole."""
    return tuple(getattr(hole, name) for name in Hole.__slots__ if name != "due_s")


def kept(symbols: Mapping[str, Ids]) -> dict[str, dict[str, object]]:
    """All that is kept of each symbol."""
    passing = {"changes", "fills", "ended", "holes", "islands", "last", "anew"}
    names = [n for n in Ids.__slots__ if n not in passing and not n.startswith("_")]
    return {
        symbol: {
            **{name: getattr(ids, name) for name in names},
            "last": ids.last_edge,
            "islands": list(ids.islands),
            "anew": list(ids.anew.items()),
            "holes": [told(hole) for hole in ids.holes],
        }
        for symbol, ids in symbols.items()
    }


def content(path: Path) -> Content:
    found = read(path)
    assert found is not None
    return found


class Story:
    """What is delivered before each commit: a hole each, and what fills an older one."""

    def __init__(self) -> None:
        self.symbols: dict[str, Ids] = {}
        self.number = -1

    def frames(self, number: int) -> list[tuple[list[Trade], int]]:
        """Of that commit, with their origins."""
        frames = [([trade(1000 + 3 * number, symbol)], STREAM) for symbol in SYMBOLS]
        if number > 20:
            first = 1000 + 3 * (number - 20)
            frames += [([trade(first + n, symbol) for n in (1, 2)], BACKFILL) for symbol in SYMBOLS]
        if number == 20:
            frames.append(([trade(GARBAGE)], STREAM))
        return frames

    def tell(self, ledger: Ledger, number: int) -> None:
        for frame, origin in self.frames(number):
            ledger.deliver(frame, origin, "gap", NOW_US + number, 100, number)
        ledger.prove("ETH/USD", 0, 1000 + 3 * (number - 5), NOW_US + number, 3)

    def until(self, number: int) -> dict[str, dict[str, object]]:
        """What is kept with that commit; not asked for an older one than before."""
        assert number >= self.number
        while self.number < number:
            self.number += 1
            for frame, origin in self.frames(self.number):
                for each in frame:
                    self._add(each, origin)
            last = 1000 + 3 * (self.number - 5)
            self.symbols["ETH/USD"].prove(0, last, NOW_US + self.number, 3)
        return kept(self.symbols)

    def _add(self, each: Trade, origin: int) -> None:
        ids = self.symbols.get(each.symbol)
        if ids is None:
            self.symbols[each.symbol] = ids = Ids(each)
            ids.sequence = self.number
        else:
            ids.add(each, origin, "gap", NOW_US + self.number, 100, self.number)

    def check(self, found: Content) -> None:
        """All of it is from one commit."""
        number = found.sequence
        assert number >= 0
        assert found.rings == {RING: 10 * number}
        assert found.mark == {"records": number}
        assert kept(found.symbols) == self.until(number)
