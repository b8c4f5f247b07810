"""docs/ADD_AN_EXCHANGE.md is true: two files and a block are all that a third exchange takes."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import websocket
from delivery import feedmono as command
from delivery import independent, wait_complete
from instance import Instance, read_avro
from sessions import drive
from sim import Sim
from toyex_exchange import Toyex

from feedmono import exchanges, simulator
from feedmono.commands import demo
from feedmono.exchanges.base import (
    Refused,
    Shutdown,
    Subscribed,
    Undecodable,
    Unknown,
    Unsubscribed,
)
from feedmono.trade import BUY, SELL, Trade

TESTS = Path(__file__).parent
TOYEX = Toyex()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the program to which the exchange was added as the page says; all processes that
    the test starts run it, and this one knows its exchanges."""
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("feedmono", "schemas", "etc"):
        shutil.copytree(TESTS.parent / part, folder / part, ignore=ignored)
    shutil.copy(TESTS / "toyex_exchange.py", folder / "feedmono" / "exchanges" / "toyex.py")
    shutil.copy(TESTS / "toyex_simulator.py", folder / "feedmono" / "simulator" / "toyex.py")
    conf = folder / "etc" / "feedmono.conf"
    text = conf.read_text("utf-8")
    assert text.count("\nexchanges {\n") == 1
    block = (TESTS / "toyex.conf").read_text("utf-8")
    conf.write_text(text.replace("\nexchanges {\n", f"\nexchanges {{\n{block}"), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(folder)
    for package in (exchanges, simulator):
        added = str(folder / "feedmono" / package.__name__.rpartition(".")[2])
        monkeypatch.setattr(package, "__path__", [*package.__path__, added])
    return folder


def test_an_exchange_that_was_added_is_captured_through_an_outage(
    copy: Path, tmp_path: Path
) -> None:
    assert exchanges.names() == simulator.names()
    assert "toyex" in exchanges.names()
    with (
        Sim("toyex", "--rate", "200", "--hold") as sim,
        Instance(tmp_path / "instance", sim) as feedmono,
    ):
        status, told = command(feedmono, "check", "--online", "--format", "json")
        assert (status, '"toyex WebSocket"' in told) == (0, True), told
        feedmono.wait_trades("toyex", 200)
        sim.fault("refuse-connections")
        sim.fault("cut")
        sim.wait(lambda state: any(s["unheard"] > 20 for s in state["symbols"].values()))
        sim.fault("refuse-connections", False)
        feedmono.wait_trades("toyex", feedmono.of("toyex")["delivered"] + 100)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "toyex", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        assert outcome.origins["BACKFILL"] > 20
        status, told = command(feedmono, "verify", "--format", "json")
        (verified,) = json.loads(told)["exchanges"]
        assert (status, verified["found"]) == (0, [])
        assert verified["trades"] == outcome.trades


def test_the_stand_in_is_asked_for_a_ping_only_when_one_is_due(copy: Path) -> None:
    with (
        Sim("toyex", "--rate", "0") as sim,
        closing(websocket.create_connection(f"{sim.ws_url}/ws", timeout=10)) as client,
    ):
        assert [json.loads(client.recv()) for _ in range(3)] == [["ping", n] for n in (1, 2, 3)]


def test_an_exchange_without_a_stand_in_has_no_demo() -> None:
    known = ", ".join(simulator.names())
    with pytest.raises(demo.DemoError, match=f"nobody can't be simulated, only {known}: "):
        demo.start(["binance", "nobody"])


# --- What the page asks to be tested of the exchange itself.

TIME_US = 1_723_161_255_342_123


@pytest.mark.parametrize(
    ("frame", "trade"),
    [
        (
            b'["t","BTC-USD",7,"61837.63","0.02","b",1723161255342123]',
            Trade("BTC-USD", 7, "61837.63", "0.02", BUY, TIME_US),
        ),
        (
            b'["t","ETH-USD",8,"1e-7","2","s",1723161255342123,"new"]',
            Trade("ETH-USD", 8, "1e-7", "2", SELL, TIME_US),
        ),
        (b'["t","BTC-USD",7,"61837.63","0.02","b"]', None),
        (b'["t","BTC-USD",true,"61837.63","0.02","b",1723161255342123]', None),
        (b'["t","BTC-USD",7,"-1","0.02","b",1723161255342123]', None),
        (b'["t","",7,"1","0.02","b",1723161255342123]', None),
        (b'["ping",7]', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_frames_are_read_with_their_exact_text(frame: bytes, trade: Trade | None) -> None:
    if trade is None:
        with pytest.raises(Undecodable):
            TOYEX.decode(frame)
    else:
        assert TOYEX.decode(frame).trades == (trade,)
        assert TOYEX.is_data(frame)


def test_a_page_gives_the_same_trades_as_the_stream() -> None:
    page = TOYEX.decode_page(
        "BTC-USD", b'[[7,"61837.63","0.02","b",1723161255342123],[8,"x","1","s",1]]'
    )
    assert page.trades == (Trade("BTC-USD", 7, "61837.63", "0.02", BUY, TIME_US),)
    assert page.problems == ("trade 2 of 2: the price is no decimal number: 'x'",)


def test_symbols_are_subscribed_in_messages_of_twenty() -> None:
    symbols = [f"S{number}-USD" for number in range(30)]

    def answer(message: list[object]) -> list[object]:
        _, number, asked = message
        assert isinstance(asked, list)
        return [["no", number, s, "why"] if s == "S3-USD" else ["ok", number, s] for s in asked]

    run = drive(TOYEX.session(symbols), answer)
    assert [len(message[2]) for _, message in run.messages] == [20, 10]
    assert run.most_in(0.19) == 1
    wanted = [Refused(s, "why") if s == "S3-USD" else Subscribed(s) for s in symbols]
    assert run.told() == wanted


def test_what_is_not_wanted_any_more_is_unsubscribed() -> None:
    session = TOYEX.session(["A-USD"])
    assert session.poll(1.0)[0] == ['["sub", 1, ["A-USD"]]']
    assert session.receive(b'["ok",1,"A-USD"]', 1.1) == (Subscribed("A-USD"),)
    session.change([])
    assert session.poll(2.0)[0] == ['["unsub", 2, ["A-USD"]]']
    assert session.receive(b'["ok",2,"A-USD"]', 2.1) == (Unsubscribed("A-USD"),)
    assert session.receive(b'["ok",2,"A-USD"]', 2.2) == ()
    (event,) = session.receive(b'["ok",3,"A-USD"]', 2.3)
    assert isinstance(event, Unknown)


def test_a_ping_is_answered_at_once() -> None:
    session = TOYEX.session([])
    session.poll(1.0)
    assert session.next_poll_s() > 1e9
    assert session.receive(b'["ping",7]', 5.0) == ()
    assert session.next_poll_s() <= 5.0
    assert session.poll(5.0) == (['["pong", 7]'], ())
    assert session.next_poll_s() > 1e9


def test_an_announced_end_is_a_shutdown() -> None:
    (event,) = TOYEX.session([]).receive(b'["bye"]', 1.0)
    assert isinstance(event, Shutdown)
