"""Canonical symbols: from REST, from the cache, from the configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sim import Sim
from toy import Reply, RestServer

from feedmono import log, workers
from feedmono.config import Budget, ExchangeConfig
from feedmono.exchanges import load
from feedmono.network import metadata
from feedmono.network.metadata import CanonicalSymbols
from feedmono.network.pace import RestPace
from feedmono.network.rest import RestClient

BUDGET = Budget(1, "warn", 1, 30)


def config(*symbols: str, rest_url: str = "", **canonical: str) -> ExchangeConfig:
    return ExchangeConfig("binance", True, symbols, "", rest_url, canonical, BUDGET)


def pace(
    tmp_path: Path, exchange: str = "binance", clock: Callable[[], float] = time.monotonic
) -> RestPace:
    return RestPace(tmp_path / "hold", load(exchange).limits, log.get(), clock=clock)


def client(url: str) -> RestClient:
    return RestClient(url, {"X-Asked": "yes"})


def test_without_an_answer_nothing_is_ready_and_the_missing_symbols_are_named(
    tmp_path: Path,
) -> None:
    names = CanonicalSymbols(config("BTCUSDT", "ETHUSDT"), tmp_path / "s.json")
    assert not names.ready()
    assert "BTCUSDT, ETHUSDT" in names.trouble
    assert "exchanges.binance.canonical_symbols" in names.trouble


def test_a_name_in_the_configuration_beats_the_exchanges(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT"}})
    names = CanonicalSymbols(config("BTCUSDT", "ETHUSDT", BTCUSDT="XBT/USDT"), path)
    assert names.ready()
    assert names.names == {"BTCUSDT": "XBT/USDT", "ETHUSDT": "ETH/USDT"}


def test_a_symbol_that_an_older_answer_could_not_know_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT"}, "asked": ["BTCUSDT"]})
    names = CanonicalSymbols(config("BTCUSDT", "NEWUSDT"), path)
    assert not names.ready()
    assert "NEWUSDT" in names.trouble
    assert "BTCUSDT" not in names.trouble
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT", "NEWUSDT": "NEW/USDT"}})
    assert names.ready()
    # Without an answer the known symbols are not held up for ever.
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT"}, "asked": ["BTCUSDT"]})
    again = CanonicalSymbols(config("BTCUSDT", "NEWUSDT"), path)
    assert not again.ready()
    monkeypatch.setattr(metadata, "PATIENCE_S", -1.0)
    assert again.ready()


def test_a_symbol_that_the_exchange_was_asked_for_and_does_not_list_is_not_waited_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.json"
    asked = ["BTCUSDT", "NOUSDT"]
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT"}, "asked": asked})
    assert CanonicalSymbols(config(*asked), path).ready()


def test_metadata_is_fetched_again_until_it_is_there_and_published(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    unlisted: list[metadata.Answer] = []
    with Sim("binance") as sim:
        sim.fault("rest-5xx", 1.0)

        def wait(seconds: float) -> bool:
            if path.exists():
                return True
            sim.fault("rest-5xx", 0.0)
            time.sleep(seconds)
            return False

        wanted = config("BTCUSDT", "NOUSDT", rest_url=sim.rest_url)
        metadata.keep_fetched(
            load("binance"), lambda: wanted, path, pace(tmp_path), wait, unlisted.append, log.get()
        )
    names = CanonicalSymbols(wanted, path)
    assert names.ready()
    assert names.names["BTCUSDT"] == "BTC/USDT"
    assert metadata.rest_names(path)["BTCUSDT"] == "BTCUSDT"
    assert [answer.unlisted for answer in unlisted] == [["NOUSDT"]]


def test_the_rest_names_are_published_beside_the_canonical_ones(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with Sim("kraken", "--symbols", "BTC/USD,DOGE/USD,SOL/USD") as sim:
        metadata.keep_fetched(
            load("kraken"),
            lambda: config("BTC/USD", rest_url=sim.rest_url),
            path,
            pace(tmp_path, "kraken"),
            lambda _: path.exists(),
            lambda _: None,
            log.get(),
        )
    expected = {"BTC/USD": "XXBTZUSD", "DOGE/USD": "XDGUSD", "SOL/USD": "SOLUSD"}
    assert metadata.rest_names(path) == expected
    content = workers.published(path)
    assert content is not None
    assert content["symbols"] == {symbol: symbol for symbol in expected}
    assert content["asked"] == ["BTC/USD"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"rest": []}', b'{"rest": {"A": 5}}', b"\xff"]
)
def test_without_published_rest_names_there_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.json"
    assert metadata.rest_names(path) == {}
    path.write_bytes(content)
    assert metadata.rest_names(path) == {}


@pytest.mark.parametrize(
    ("exchange", "reply", "held_s"),
    [
        ("binance", Reply(429, headers={"Retry-After": "77"}), 77.0),
        ("binance", Reply(418), 10.0),
        ("binance", Reply(503, headers={"Retry-After": "5"}), 5.0),
        ("binance", Reply(503), 0.0),
        ("kraken", Reply(200, b'{"error":["EGeneral:Too many requests"]}'), 10.0),
        ("kraken", Reply(200, b'{"error":["EService:Unavailable"]}'), 0.0),
        ("kraken", Reply(200, b"[]"), 0.0),
    ],
)
def test_what_the_exchange_asks_for_holds_all_that_share_the_pace(
    tmp_path: Path, exchange: str, reply: Reply, held_s: float
) -> None:
    now_s = [1000.0]
    shared = pace(tmp_path, exchange, lambda: now_s[0])
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    with RestServer(lambda _: reply) as server:
        wanted = config("BTCUSDT", rest_url=server.url)
        path = tmp_path / "s.json"
        metadata.keep_fetched(
            load(exchange), lambda: wanted, path, shared, wait, lambda _: None, log.get()
        )
        assert len(server.paths) == 1
    assert not path.exists()
    assert waits == [pytest.approx(1.0, abs=0.5)]
    now_s[0] += 2.0
    assert shared.reserve(1) == max(0.0, held_s - 2.0)


def test_metadata_waits_for_the_pace(tmp_path: Path) -> None:
    now_s = [1000.0]
    shared = pace(tmp_path, clock=lambda: now_s[0])
    shared.hold(100.0)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        now_s[0] += seconds
        return len(waits) == 3

    with RestServer(lambda _: Reply(headers={"X-MBX-USED-WEIGHT-1M": "5000"})) as server:
        wanted = config("BTCUSDT", rest_url=server.url)
        metadata.keep_fetched(
            load("binance"),
            lambda: wanted,
            tmp_path / "s.json",
            shared,
            wait,
            lambda _: None,
            log.get(),
        )
        assert server.headers[0]["x-mbx-time-unit"] == "MICROSECOND"
    assert waits[:2] == [60.0, 40.0]
    assert shared.reserve(1) > 50.0
