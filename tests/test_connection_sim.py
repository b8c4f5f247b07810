"""The connection with both exchanges' own sessions against the simulator, and its faults."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from sim import Sim
from toy import Desk, Events, events, limits, running

from feedmono.exchanges import load
from feedmono.exchanges.base import Undecodable
from feedmono.network.contract import State
from feedmono.trade import STREAM

__all__ = ["events"]

SYMBOLS = {"binance": ("BTCUSDT", "ETHUSDT", "SOLUSDT"), "kraken": ("BTC/USD", "ETH/USD")}
both = pytest.mark.parametrize("name", sorted(SYMBOLS))


def simulator(name: str, *args: str) -> Sim:
    return Sim(name, "--symbols", ",".join(SYMBOLS[name]), *args)


def ids(name: str, desk: Desk) -> dict[str, list[int]]:
    """The ids of the live trades that were delivered, by symbol."""
    exchange = load(name)
    found: dict[str, list[int]] = defaultdict(list)
    for frame in list(desk.delivered):
        try:
            decoded = exchange.decode(frame.payload)
        except Undecodable:
            continue
        for trade in decoded.trades if decoded.origin == STREAM else ():
            found[trade.symbol].append(trade.trade_id)
    return found


@both
def test_every_trade_of_a_session_is_delivered_once_and_in_order(
    tmp_path: Path, events: Events, name: str
) -> None:
    args = ("--rate", "20000", "--limit", "12000", "--hold", "--faults", "fragmented=0.1")
    desk = Desk()
    with (
        simulator(name, *args) as sim,
        running(tmp_path, sim.ws_url, desk, exchange=load(name), symbols=SYMBOLS[name]),
    ):
        state = sim.wait(lambda s: bool(s["finished"]))
        desk.wait(lambda: sum(map(len, ids(name, desk).values())) >= 12_000)
    expected = {
        symbol: list(range(told["first_id"], told["last_id"] + 1))
        for symbol, told in state["symbols"].items()
    }
    assert ids(name, desk) == expected
    assert set(desk.symbols) == set(SYMBOLS[name])
    assert desk.unknowns == []
    assert desk.reconnects == []
    assert events.named("subscribed")[0]["symbols"] == len(SYMBOLS[name])


@both
@pytest.mark.parametrize(
    ("fault", "value", "reason"),
    [
        ("cut", True, "lost"),
        ("half-open", True, "silent"),
        ("close", "1012", "closed 1012"),
        ("oversized", True, "too large"),
    ],
)
def test_after_a_fault_the_trades_flow_again(
    tmp_path: Path, name: str, fault: str, value: object, reason: str
) -> None:
    desk = Desk()
    config = limits(silence_limit_s=1.0, frame_limit_bytes=100_000)
    with (
        simulator(name, "--rate", "500", "--faults", "oversized-mib=0.2") as sim,
        running(
            tmp_path, sim.ws_url, desk, exchange=load(name), symbols=SYMBOLS[name], config=config
        ),
    ):
        desk.wait(lambda: bool(ids(name, desk)))
        sim.fault(fault, value)
        desk.wait(lambda: bool(desk.reconnects))
        sim.fault(fault, False)
        before = len(desk.delivered)
        desk.wait(lambda: len(desk.delivered) > before + 20)
        assert desk.reconnects[0] == reason


@both
def test_a_mute_server_is_left_for_another(tmp_path: Path, name: str) -> None:
    desk = Desk()
    config = limits(silence_limit_s=0.6)
    with (
        simulator(name, "--rate", "200", "--faults", "mute=1") as sim,
        running(
            tmp_path, sim.ws_url, desk, exchange=load(name), symbols=SYMBOLS[name], config=config
        ),
    ):
        desk.wait(lambda: bool(desk.reconnects))
        sim.fault("mute", 0)
        desk.wait(lambda: bool(ids(name, desk)))
        assert desk.reconnects[0] == "silent"


@both
def test_a_refused_symbol_leaves_the_others_flowing(
    tmp_path: Path, events: Events, name: str
) -> None:
    refused, other = SYMBOLS[name][:2]
    desk = Desk()
    with (
        simulator(name, "--rate", "500", "--faults", f"refuse={refused}") as sim,
        running(tmp_path, sim.ws_url, desk, exchange=load(name), symbols=SYMBOLS[name]),
    ):
        desk.wait(lambda: refused in desk.symbols and other in ids(name, desk))
        desk.wait(lambda: State.FLOWING in desk.states)
    assert desk.symbols[other] == "subscribed"
    assert desk.symbols[refused] != "subscribed"
    assert refused not in ids(name, desk)
    assert [e["symbol"] for e in events.named("refused")] == [refused]
    assert desk.reconnects == []


@both
def test_garbage_frames_are_kept_and_cost_no_trade(tmp_path: Path, name: str) -> None:
    args = ("--rate", "5000", "--limit", "3000", "--hold", "--faults", "garbage=0.1")
    desk = Desk()
    with (
        simulator(name, *args) as sim,
        running(tmp_path, sim.ws_url, desk, exchange=load(name), symbols=SYMBOLS[name]),
    ):
        state = sim.wait(lambda s: bool(s["finished"]))
        desk.wait(lambda: sum(map(len, ids(name, desk).values())) >= 3000)
        assert desk.reconnects == []
    for symbol, told in state["symbols"].items():
        made = set(range(told["first_id"], told["last_id"] + 1))
        assert made <= set(ids(name, desk)[symbol])
    assert desk.unknowns
