"""Canonical symbols: from REST, from the cache, from the configuration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from sim import Sim

from feedmono import log, metadata, rest, workers
from feedmono.config import Budget, ExchangeConfig
from feedmono.exchanges import load
from feedmono.metadata import CanonicalSymbols


def config(*symbols: str, rest_url: str = "", **canonical: str) -> ExchangeConfig:
    return ExchangeConfig("binance", True, symbols, "", rest_url, canonical, Budget(1, 1))


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
    monkeypatch.setattr(metadata, "_PATIENCE_S", -1.0)
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
    unlisted: list[Sequence[str]] = []
    with Sim("binance") as sim:
        sim.fault("rest-5xx", 1.0)

        def wait(seconds: float) -> bool:
            if path.exists():
                return True
            sim.fault("rest-5xx", 0.0)
            time.sleep(seconds)
            return False

        wanted = config("BTCUSDT", "NOUSDT", rest_url=sim.rest_url)
        metadata.keep_fetched(load("binance"), wanted, path, wait, unlisted.append, log.get())
    names = CanonicalSymbols(wanted, path)
    assert names.ready()
    assert names.names["BTCUSDT"] == "BTC/USDT"
    assert unlisted == [["NOUSDT"]]


def test_a_refusal_names_status_and_address_and_how_long_to_wait(tmp_path: Path) -> None:
    with Sim("binance") as sim:
        sim.fault("rest-418", 1.0)
        with pytest.raises(rest.RestError, match="HTTP 418") as caught:
            rest.get(f"{sim.rest_url}/api/v3/exchangeInfo")
        assert caught.value.retry_after_s > 0
        assert sim.rest_url in str(caught.value)
    with pytest.raises(rest.RestError, match=sim.rest_url):
        rest.get(f"{sim.rest_url}/api/v3/exchangeInfo")


def test_an_answer_that_only_drips_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "_DEADLINE_S", -1.0)
    with Sim("binance") as sim, pytest.raises(rest.RestError, match="no whole answer"):
        rest.get(f"{sim.rest_url}/api/v3/exchangeInfo")
