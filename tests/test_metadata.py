"""Canonical symbols: from REST, from the cache, from the configuration."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sim import Sim, wait_until
from toy import Reply, RestServer

from feedmono import log, workers
from feedmono.config import Budget, ExchangeConfig
from feedmono.exchanges import load
from feedmono.network import metadata, rest
from feedmono.network.metadata import CanonicalSymbols
from feedmono.network.pace import RestPace
from feedmono.network.rest import RestClient, RestError

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


# --- Requests


def test_a_refusal_names_status_and_address_and_how_long_to_wait(tmp_path: Path) -> None:
    with Sim("binance") as sim:
        one = client(sim.rest_url)
        sim.fault("rest-418", 1.0)
        with pytest.raises(RestError, match="HTTP 418") as caught:
            one.get("/api/v3/exchangeInfo")
        assert caught.value.status == 418
        assert caught.value.retry_after_s > 0
        assert sim.rest_url in str(caught.value)
    with pytest.raises(RestError, match=sim.rest_url) as caught:
        one.get("/api/v3/exchangeInfo")
    assert caught.value.status is None
    one.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"


@contextlib.contextmanager
def dripping(*answers: bytes) -> Iterator[int]:
    """The port of a server that takes one connection, gives these answers at once, and then a byte
    now and then for as long as anybody listens."""

    def serve() -> None:
        sock, _ = server.accept()
        with sock, contextlib.suppress(OSError):
            for answer in answers:
                assert sock.recv(65536)
                sock.sendall(answer)
            while True:
                sock.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive(), "the connection is still there"


def _requests() -> list[threading.Thread]:
    """Those under way."""
    return [thread for thread in threading.enumerate() if thread.name == "rest-request"]


@pytest.mark.parametrize(
    ("scheme", "answers"),
    [
        ("http", [HEAD]),
        ("http", [HEAD.replace(b"7", b"99999") + b"\r\n"]),
        ("http", [HEAD + b"\r\na whole", HEAD]),
        # A record of TLS, of which only the beginning comes.
        ("https", [b"\x16\x03\x03\x40\x00"]),
    ],
    ids=["headers", "body", "second answer", "TLS"],
)
def test_an_answer_that_only_drips_is_given_up_when_the_limit_is_over(
    scheme: str, answers: list[bytes]
) -> None:
    with dripping(*answers) as port:
        one = RestClient(f"{scheme}://127.0.0.1:{port}", {}, limit_s=1.0)
        if len(answers) == 2:
            assert one.get("/").body == b"a whole"
        begun_s = time.monotonic()
        with pytest.raises(RestError, match="no whole answer in 1 s") as caught:
            one.get("/")
        assert time.monotonic() - begun_s >= 1.0
        assert caught.value.status is None
        wait_until(_requests, lambda left: not left)
    with RestServer(lambda _: Reply()) as server:
        one = RestClient(server.url, {}, limit_s=20.0)
        assert one.get("/").body == b"a page"
        one.close()


def test_a_name_lookup_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    look_up = socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        go_on.wait(60)
        return look_up(*args, **options)

    with RestServer(lambda _: Reply()) as server:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        one = RestClient(server.url, {}, limit_s=0.3)
        with pytest.raises(RestError, match="no whole answer"):
            one.get("/late")
        go_on.set()
        wait_until(_requests, lambda left: not left)
        assert not server.paths, "nobody wants it any more"
        two = RestClient(server.url, {})
        assert two.get("/next").body == b"a page"
        two.close()


def test_a_connection_is_kept_and_made_anew_after_a_close() -> None:
    with RestServer(lambda _: Reply(headers={"X-Some": "Thing"})) as server:
        one = client(server.url)
        answers = [one.get("/a?b=%E5%B8%81"), one.get("/c")]
        assert server.connections == 1
        one.close()
        answers.append(one.get("/d"))
        one.close()
        one.close()
        assert server.connections == 2
        assert server.paths == ["/a?b=%E5%B8%81", "/c", "/d"]
        assert {answer.body for answer in answers} == {b"a page"}
        assert {answer.headers["x-some"] for answer in answers} == {"Thing"}
        assert {headers["x-asked"] for headers in server.headers} == {"yes"}
        assert {headers["user-agent"] for headers in server.headers} == {"feedmono"}


def test_an_answer_above_its_limit_is_not_taken() -> None:
    with RestServer(lambda _: Reply(body=b"x" * 1000)) as server:
        one = client(server.url)
        assert len(one.get("/", 1000).body) == 1000
        with pytest.raises(rest.TooLarge, match="999 B") as caught:
            one.get("/", 999)
        assert caught.value.status is None
        assert len(one.get("/").body) == 1000


def test_a_redirect_is_followed_but_not_to_another_scheme_nor_for_ever() -> None:
    with RestServer(lambda path: replies[path]) as server:
        replies = {
            "/a": Reply(301, headers={"Location": "/b"}),
            "/b": Reply(302, headers={"Location": f"{server.url}/c"}),
            "/c": Reply(),
            "/https": Reply(301, headers={"Location": "https://127.0.0.1:1/"}),
            "/file": Reply(301, headers={"Location": "file:///etc/passwd"}),
            "/odd": Reply(301, headers={"Location": "http://[:bad"}),
            "/loop": Reply(307, headers={"Location": "/loop"}),
        }
        one = client(server.url)
        assert one.get("/a").body == b"a page"
        for path, status in [("/https", 301), ("/file", 301), ("/odd", None), ("/loop", 307)]:
            with pytest.raises(RestError) as caught:
                one.get(path)
            assert caught.value.status == status
        assert server.paths.count("/loop") == 6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 259_200.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_the_wait_that_the_server_names_is_a_number_within_bounds(
    text: str, seconds: float
) -> None:
    with (
        RestServer(lambda _: Reply(429, headers={"Retry-After": text})) as server,
        pytest.raises(RestError) as caught,
    ):
        client(server.url).get("/")
    assert caught.value.retry_after_s == seconds
    assert math.isfinite(caught.value.retry_after_s)


@pytest.mark.parametrize("url", ["", "nothing", "http://", "http://[::1", "ftp://a", "http://a:b"])
def test_an_address_that_is_none_is_told_as_any_other_failure(url: str) -> None:
    with pytest.raises(RestError, match="GET "):
        client(url).get("/x")
