"""Each stand-in against its exchange: what the one writes, the other reads."""

from __future__ import annotations

import random

import pytest

from feedmono import exchanges, simulator
from feedmono.exchanges.base import Undecodable
from feedmono.simulator.base import Dialect, Print
from feedmono.simulator.faults import Faults
from feedmono.simulator.garbage import garbage
from feedmono.simulator.market import MadeSource
from feedmono.simulator.tape import Tape
from feedmono.simulator.venue import Venue

NAMES = [name for name in exchanges.names() if name in simulator.names()]
FIRST_ID = 1_000_001
TIME_US = 1_700_000_000_123_000


def made(name: str) -> tuple[Dialect, str]:
    kind = simulator.load(name)
    symbol = kind.default_symbols[0]
    market = kind.markets[symbol]
    tape = Tape(market, MadeSource(1, market), FIRST_ID, None, 5)
    return kind(Venue({symbol: tape}, Faults(1), strict=True)), symbol


def prints(name: str, symbol: str, time: str, count: int) -> list[Print]:
    ids = range(FIRST_ID, FIRST_ID + count)
    return [Print(i, *simulator.figures(name, 1, symbol, i), time) for i in ids]


def message(name: str, count: int = 1) -> str:
    """A message of the stand-in's with so many trades."""
    dialect, symbol = made(name)
    variant = dialect.default_variant
    time = dialect.time_text(variant, TIME_US)
    return dialect.render(variant, symbol, prints(name, symbol, time, count))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_exchange_reads_what_its_stand_in_writes(name: str, count: int) -> None:
    dialect, symbol = made(name)
    count = count if dialect.batches else 1
    data = message(name, count).encode()
    exchange = exchanges.load(name)
    assert exchange.is_data(data), "the fast test does not know it"
    decoded = exchange.decode(data)
    assert decoded.problems == ()
    assert [trade[:6] for trade in decoded.trades] == [
        (symbol, p.trade_id, p.price, p.quantity, p.side, TIME_US)
        for p in prints(name, symbol, "", count)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_trades_time_fits_the_place_that_is_kept_for_it(name: str) -> None:
    """Frames are rendered beforehand, their length in front: it must not change by the time."""
    dialect, symbol = made(name)
    variant = dialect.default_variant
    place = dialect.placeholder(variant)
    assert set(place) == {"\0"}
    text = dialect.render(variant, symbol, prints(name, symbol, place, 1))
    for time_us in (TIME_US, 1_600_000_000_000_000, 4_000_000_000_999_999):
        time = dialect.time_text(variant, time_us)
        assert len(time) == len(place), "a time of another length than its placeholder"
        whole = dialect.render(variant, symbol, prints(name, symbol, time, 1))
        assert text.replace(place, time) == whole, "the placeholder is not in the message as it is"


@pytest.mark.parametrize("name", NAMES)
def test_no_trade_is_read_from_a_stand_ins_garbage(name: str) -> None:
    dialect, _ = made(name)
    exchange = exchanges.load(name)
    text = message(name)
    for seed in range(300):
        data = garbage(text, dialect.essential, random.Random(seed))
        size = data[1] & 0x7F
        payload = data[2 if size < 126 else 4 if size == 126 else 10 :]
        with pytest.raises(Undecodable):
            exchange.decode(payload)
