"""Pages of past trades from the simulators: within the pace, and through their faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from errands_rig import AGAIN, CANT, running
from sim import Sim
from toy import Events, events

from feedmono.exchanges import load
from feedmono.exchanges.base import Exchange, PageRequest
from feedmono.trade import BACKFILL

__all__ = ["events"]


def ids_of(exchange: Exchange, page: tuple[PageRequest, bytes]) -> list[int]:
    decoded = exchange.decode_page(page[0].symbol, page[1])
    assert (decoded.origin, decoded.problems) == (BACKFILL, ())
    return [trade.trade_id for trade in decoded.trades]


def made(sim: Sim, symbol: str, count: int) -> int:
    """Waits until so many trades were made; the first id."""
    state = sim.wait(lambda s: s["symbols"][symbol]["made"] >= count)
    first_id: int = state["symbols"][symbol]["first_id"]
    return first_id


def test_a_page_begins_at_the_id_asked_for_and_has_microseconds(tmp_path: Path) -> None:
    exchange = load("binance")
    with (
        Sim("binance", "--symbols", "BTCUSDT,币安人生USDT=币安人生/USDT", "--rate", "5000") as sim,
        running(
            tmp_path,
            exchange,
            sim.rest_url,
            rest={"BTCUSDT": "BTCUSDT", "币安人生USDT": "币安人生USDT"},
            eager=False,
        ) as run,
    ):
        first_id = made(sim, "BTCUSDT", 2000)
        run.ask("BTCUSDT", first_id + 7, 5000)
        run.ask("币安人生USDT", made(sim, "币安人生USDT", 100) + 1, 50)
        one, other = run.pages(2)
        assert one[0] == PageRequest("BTCUSDT", first_id + 7, 0, 1000, False)
        assert ids_of(exchange, one) == list(range(first_id + 7, first_id + 1007))
        assert len(ids_of(exchange, other)) == 50
        trades = exchange.decode_page("BTCUSDT", one[1]).trades
        assert [(t.price, t.quantity, t.side) for t in trades[::100]] == [
            tuple(sim.figures("BTCUSDT", t.trade_id)) for t in trades[::100]
        ]
        assert any(trade.time_us % 1000 for trade in trades)
        assert run.pace.used == [25, 50]
        assert run.failed == 0


def test_pages_by_time_stay_within_one_request_a_second(tmp_path: Path) -> None:
    exchange = load("kraken")
    rest = {"BTC/USD": "XXBTZUSD", "DOGE/USD": "XDGUSD"}
    with (
        Sim("kraken", "--symbols", "BTC/USD,DOGE/USD", "--rate", "2000") as sim,
        running(tmp_path, exchange, sim.rest_url, rest=rest, eager=False) as run,
    ):
        first_id = made(sim, "BTC/USD", 1000)
        made(sim, "DOGE/USD", 1000)
        for number in range(2):
            for symbol in rest:
                run.ask(symbol, first_id + number, 300)
        pages = run.pages(4)
        assert [wish.symbol for wish, _ in pages] == [*rest, *rest]
        assert ids_of(exchange, pages[0]) == list(range(first_id, first_id + 300))
        trades = exchange.decode_page("BTC/USD", pages[0][1]).trades
        # Fewer than a thousand share a time.
        run.ask("BTC/USD", first_id + 150, 1000, trades[150].time_us)
        assert first_id + 150 in ids_of(exchange, run.pages(5)[4])
        assert run.told == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("rest-429", "HTTP 429"),
        ("rest-418", "HTTP 418"),
        ("rest-5xx", "HTTP 50"),
        ("rest-none", "GET http"),
    ],
)
@pytest.mark.parametrize(("name", "symbol"), [("binance", "BTCUSDT"), ("kraken", "BTC/USD")])
def test_a_server_in_trouble_is_told_left_alone_and_asked_again(
    tmp_path: Path, events: Events, name: str, symbol: str, fault: str, reason: str
) -> None:
    rest = {symbol: "BTCUSDT" if name == "binance" else "XXBTZUSD"}
    with (
        Sim(name, "--symbols", symbol, "--no-limits") as sim,
        running(tmp_path, load(name), sim.rest_url, rest=rest, eager=False) as run,
    ):
        first_id = made(sim, symbol, 10)
        sim.fault(fault, 1.0)
        asked = 0
        # Half of the times, rest-none gives an empty page instead of closing the connection.
        while not run.told:
            run.ask(symbol, first_id + asked)
            asked += 1
            run.wait(lambda asked=asked: run.counted + len(run.told) == asked)  # type: ignore[misc]
        sim.fault(fault, 0.0)
        told = run.failures(1)[0]
        assert (told["symbol"], told["first_id"]) == (symbol, first_id + asked - 1)
        assert reason in told["reason"]
        assert told["passing"] is True
        run.ask(symbol, first_id)
        run.pages(asked)
        assert ids_of(load(name), run.pages(asked)[-1])
        assert "retry-after ignored" not in sim.state()["faults"]
        assert [hold for hold, _ in run.pace.holds] == [
            {"rest-429": 1.0, "rest-418": 3.0}.get(fault, 1.0)
        ]
    assert len(events.named(CANT)) == len(events.named(AGAIN)) == 1


def test_slow_answers_and_wrong_ones_are_handed_on_as_they_are(tmp_path: Path) -> None:
    exchange = load("binance")
    rest = {"BTCUSDT": "BTCUSDT", "ETHUSDT": "ETHUSDT"}
    with (
        Sim("binance", "--no-limits", "--symbols", "BTCUSDT,ETHUSDT") as sim,
        running(tmp_path, exchange, sim.rest_url, rest=rest) as run,
    ):
        first_id = made(sim, "BTCUSDT", 10)
        sim.fault("rest-slow", "100ms")
        sim.fault("rest-wrong", 1.0)
        for number in range(5):
            run.ask("BTCUSDT", first_id + number)
        pages = run.pages(5)
        assert all(ids_of(exchange, page) for page in pages)
        assert run.told == []
