"""The simulator's two protocols, spoken to by the real client libraries."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import websocket
from sim import Sim, wait_until

from feedmono.trade import BUY, SELL

RECORDING = Path(__file__).parents[2] / "shared" / "frames" / "binance-btcusdt-2024-08.jsonl.gz"


@contextmanager
def connect(sim: Sim, path: str) -> Iterator[Any]:
    """A WebSocket client that waits at most 10 s for a message."""
    with closing(websocket.create_connection(sim.ws_url + path, timeout=10)) as client:
        yield client


def ask(client: Any, request: object) -> None:
    client.send(json.dumps(request))


def message(client: Any) -> Any:
    """The next message; JSON numbers with a point as their text."""
    return json.loads(client.recv(), parse_float=str)


def until(client: Any, key: str) -> Any:
    """The next message that has this key."""
    while True:
        found = message(client)
        if key in found:
            return found


def subscribe(symbols: Sequence[str], number: int = 1, **params: object) -> dict[str, object]:
    """A subscription of Kraken's."""
    wanted = {"channel": "trade", "symbol": list(symbols), "snapshot": True, **params}
    return {"method": "subscribe", "params": wanted, "req_id": number}


# --- Binance.


def test_combined_streams_carry_every_trade_once_with_the_figures_of_its_id() -> None:
    """Ids are consecutive per symbol, decimals exact, times current."""
    before_ms = time.time_ns() // 1_000_000
    with Sim("binance", "--symbols", "BTCUSDT,XRPUSDT", "--limit", "601", "--hold") as sim:
        sim.fault("rate", 5000)
        with connect(sim, "/stream?streams=btcusdt@trade/xrpusdt@trade") as client:
            frames = [message(client) for _ in range(601)]
        for symbol, count in (("BTCUSDT", 301), ("XRPUSDT", 300)):
            trades = [f["data"] for f in frames if f["stream"] == f"{symbol.lower()}@trade"]
            assert [t["t"] for t in trades] == list(range(1_000_001, 1_000_001 + count))
            for t in trades:
                figures = sim.figures(symbol, t["t"])
                assert (t["p"], t["q"]) == (figures.price, figures.quantity)
                assert t["m"] == (figures.side == SELL)
                assert (t["e"], t["s"], t["M"]) == ("trade", symbol, True)
                assert before_ms <= t["T"] <= time.time_ns() // 1_000_000
        assert sim.stop()["symbols"]["BTCUSDT"]["sent"] == 301


def test_raw_streams_are_subscribed_listed_and_given_up() -> None:
    with Sim("binance", "--rate", "500") as sim, connect(sim, "/ws") as client:
        ask(client, {"method": "SUBSCRIBE", "params": ["ethusdt@trade"], "id": 7})
        assert message(client) == {"result": None, "id": 7}
        first = message(client)
        assert (first["e"], first["s"]) == ("trade", "ETHUSDT")
        ask(client, {"method": "LIST_SUBSCRIPTIONS", "id": "x"})
        assert until(client, "result") == {"result": ["ethusdt@trade"], "id": "x"}
        ask(client, {"method": "UNSUBSCRIBE", "params": ["ethusdt@trade"], "id": 8})
        assert until(client, "result") == {"result": None, "id": 8}
        assert sim.state()["subscriptions"] == {}


def test_the_url_asks_for_microseconds() -> None:
    with Sim("binance") as sim, connect(sim, "/ws/btcusdt@trade?timeUnit=MICROSECOND") as client:
        trade = message(client)
        assert len(str(trade["T"])) == 16
        assert len(str(trade["E"])) == 16


def test_what_is_due_within_a_period_comes_together() -> None:
    path = "/ws/btcusdt@trade?timeUnit=MICROSECOND"
    arguments = ("--symbols", "BTCUSDT", "--rate", "100", "--period-ms", "100", "--hold")
    with Sim("binance", *arguments) as sim, connect(sim, path) as client:
        times_us = [message(client)["T"] for _ in range(50)]
        pauses_us = [later - time_us for time_us, later in pairwise(times_us)]
        assert pauses_us.count(0) > 30
        assert min(pause_us for pause_us in pauses_us if pause_us) >= 99_000


def test_a_well_formed_stream_of_no_symbol_is_accepted_and_stays_mute() -> None:
    with Sim("binance") as sim, connect(sim, "/stream") as client:
        streams = ["nosuchusdt@trade", "BTCUSDT@trade", "btcusdt@depth"]
        ask(client, {"method": "SUBSCRIBE", "params": streams, "id": 1})
        assert message(client) == {"result": None, "id": 1}
        assert sim.state()["subscriptions"] == {}


def test_errors_come_flat_and_nested() -> None:
    with Sim("binance", "--no-limits") as sim, connect(sim, "/ws") as client:
        client.send("{")
        flat = message(client)
        assert flat["code"] == 3
        ask(client, {"method": "SUBSCRIBE", "params": ["btcusdt"], "id": 5})
        nested = message(client)
        assert nested["error"]["code"] == 2
        assert nested["id"] == 5


def test_a_symbol_beyond_ascii_is_escaped_in_the_url_and_plain_in_the_events() -> None:
    with Sim("binance", "--symbols", "币安人生USDT=币安人生/USDT") as sim:
        escaped = "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@trade"
        with connect(sim, f"/stream?streams={escaped}") as client:
            assert message(client)["data"]["s"] == "币安人生USDT"
        with connect(sim, f"/ws/{escaped}") as client:
            assert message(client)["s"] == "币安人生USDT"


def test_the_sixth_message_within_a_second_ends_the_connection() -> None:
    with Sim("binance") as sim, connect(sim, "/ws") as client:
        for n in range(5):
            ask(client, {"method": "LIST_SUBSCRIPTIONS", "id": n})
        client.ping()
        for n in range(5):
            assert message(client) == {"result": [], "id": n}
        assert client.recv_data()[1][:2] == (1008).to_bytes(2, "big")


def test_more_than_1024_streams_are_refused() -> None:
    with Sim("binance", "--no-limits") as sim, connect(sim, "/ws") as client:
        names = [f"s{n}usdt@trade" for n in range(1025)]
        ask(client, {"method": "SUBSCRIBE", "params": names, "id": 1})
        assert message(client)["code"] == 2
        ask(client, {"method": "SUBSCRIBE", "params": names[:1024], "id": 2})
        assert message(client) == {"result": None, "id": 2}


def test_a_client_that_answers_no_pings_is_cut() -> None:
    with (
        Sim("binance", "--ping-interval", "0.3", "--rate", "1") as sim,
        connect(sim, "/ws") as good,
        connect(sim, "/ws") as bad,
    ):
        good.settimeout(0.1)
        while sim.state()["connections_open"] == 2:
            # Receiving answers the pings.
            with pytest.raises(websocket.WebSocketTimeoutException):
                good.recv()
        assert sim.state()["connections_open"] == 1
        assert sim.state()["faults"]["client without pong cut"] == 1
        assert bad.sock.recv(1) == b"\x89"


def test_a_clients_ping_is_answered_with_its_payload() -> None:
    with Sim("binance", "--rate", "0") as sim, connect(sim, "/ws") as client:
        client.ping("abc")
        assert client.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"abc")


def test_too_many_connection_attempts_are_turned_away() -> None:
    with Sim("binance") as sim:
        for _ in range(300):
            with connect(sim, "/ws"):
                pass
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(sim.ws_url + "/ws", timeout=10)
        assert caught.value.status_code == 429


def test_history_by_id_pages_through_all_that_the_stream_had() -> None:
    with Sim("binance", "--symbols", "BTCUSDT", "--limit", "2500", "--rate", "100000") as sim:
        sim.wait(lambda state: bool(state["finished"]))
        rows: list[dict[str, Any]] = []
        with httpx.Client(base_url=sim.rest_url) as rest:
            while True:
                from_id = rows[-1]["id"] + 1 if rows else 0
                query = {"symbol": "BTCUSDT", "fromId": str(from_id), "limit": "1000"}
                page = rest.get("/api/v3/historicalTrades", params=query).json()
                if not page:
                    break
                rows += page
            recent = rest.get("/api/v3/trades", params={"symbol": "BTCUSDT", "limit": 3}).json()
        assert [r["id"] for r in rows] == list(range(1_000_001, 1_002_501))
        assert recent == rows[-3:]
        for row in rows:
            figures = sim.figures("BTCUSDT", row["id"])
            assert (row["price"], row["qty"]) == (figures.price, figures.quantity)
            assert row["isBuyerMaker"] == (figures.side == SELL)


def test_aggregates_cover_the_ids_without_a_hole() -> None:
    with Sim("binance", "--limit", "3000", "--rate", "100000", "--symbols", "XRPUSDT") as sim:
        sim.wait(lambda state: bool(state["finished"]))
        query = {"symbol": "XRPUSDT", "fromId": "1000001", "limit": "1000"}
        rows = httpx.get(f"{sim.rest_url}/api/v3/aggTrades", params=query).json()
        covered = [i for row in rows for i in range(row["f"], row["l"] + 1)]
        assert covered == list(range(1_000_001, 1_001_001))
        assert len(rows) < 1000


def test_metadata_names_base_and_quote_and_refuses_what_does_not_exist() -> None:
    with Sim("binance") as sim, httpx.Client(base_url=sim.rest_url) as rest:
        info = rest.get("/api/v3/exchangeInfo")
        assert info.headers["X-MBX-USED-WEIGHT-1M"] == "20"
        ether = info.json()["symbols"][1]
        assert (ether["symbol"], ether["baseAsset"], ether["quoteAsset"]) == (
            "ETHUSDT",
            "ETH",
            "USDT",
        )
        wrong = rest.get("/api/v3/exchangeInfo", params={"symbol": "NOSUCH"})
        assert (wrong.status_code, wrong.json()["code"]) == (400, -1121)
        odd = rest.get("/api/v3/exchangeInfo", params={"symbols": "[[1]]"})
        assert odd.status_code == 400
        assert rest.get("/api/v3/historicalTrades").json()["code"] == -1102
        assert rest.get("/api/v3/ping").json() == {}
        server_ms = rest.get("/api/v3/time").json()["serverTime"]
        assert abs(server_ms - time.time_ns() // 1_000_000) < 60_000


def test_weight_beyond_the_minute_is_told_to_back_off_and_then_banned() -> None:
    with Sim("binance") as sim, httpx.Client(base_url=sim.rest_url) as rest:
        statuses = []
        # A minute may turn once while this goes on: twice the weight is enough.
        for _ in range(2 * 240 + 30):
            answer = rest.get("/api/v3/historicalTrades", params={"symbol": "BTCUSDT", "limit": 1})
            statuses.append(answer.status_code)
            if answer.status_code == 418:
                break
        assert statuses[:240].count(200) >= 1
        assert 429 in statuses
        assert statuses[-1] == 418
        assert int(answer.headers["Retry-After"]) > 60


# --- Kraken.


def test_a_connection_begins_with_the_status_and_an_id_beyond_int64() -> None:
    with Sim("kraken") as sim, connect(sim, "/v2") as client:
        status = message(client)
        assert status["channel"] == "status"
        assert status["data"][0]["system"] == "online"
        assert status["data"][0]["connection_id"] > 2**63


def test_each_symbol_is_acknowledged_by_itself_and_sends_its_snapshot() -> None:
    with Sim("kraken", "--limit", "400", "--rate", "100000") as sim:
        sim.wait(lambda state: bool(state["finished"]))
        with connect(sim, "/v2") as client:
            message(client)
            ask(client, subscribe(["BTC/USD", "XBT/USD", "ETH/USD"], 42))
            answers = [message(client) for _ in range(5)]
            acks = [a for a in answers if a.get("success")]
            assert [a["result"]["symbol"] for a in acks] == ["BTC/USD", "ETH/USD"]
            assert all(a["req_id"] == 42 for a in acks)
            refused = [a for a in answers if a.get("success") is False]
            assert refused[0]["error"] == "Currency pair not supported XBT/USD"
            assert refused[0]["symbol"] == "XBT/USD"
            assert "result" not in refused[0]
            snapshots = [a for a in answers if a.get("type") == "snapshot"]
            for shot, symbol in zip(snapshots, ("BTC/USD", "ETH/USD"), strict=True):
                ids = [t["trade_id"] for t in shot["data"]]
                assert ids == list(range(1_000_051, 1_000_101))
                assert {t["symbol"] for t in shot["data"]} == {symbol}


def test_frames_carry_several_trades_with_the_exact_text_of_their_decimals() -> None:
    with Sim("kraken", "--limit", "800", "--hold", "--batch", "7", "--rate", "5000") as sim:
        symbols = ["BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD"]
        with connect(sim, "/v2") as client:
            ask(client, subscribe(symbols))
            frames: list[list[dict[str, Any]]] = []
            while sum(map(len, frames)) < 800:
                frames.append(until(client, "data")["data"])
                if "trade_id" not in frames[-1][0]:
                    frames.pop()
        assert max(map(len, frames)) == 7
        assert min(map(len, frames)) < 7
        trades = [t for frame in frames for t in frame]
        for symbol in symbols:
            mine = [t for t in trades if t["symbol"] == symbol]
            assert [t["trade_id"] for t in mine] == list(range(1_000_001, 1_000_201))
            for t in mine:
                figures = sim.figures(symbol, t["trade_id"])
                assert (t["price"], t["qty"]) == (figures.price, figures.quantity)
                assert t["side"] == ("buy" if figures.side == BUY else "sell")
                assert len(t["timestamp"]) == len("2024-05-27T12:43:11.798009Z")
        assert any(t["price"].endswith("0") for t in trades)
        assert any(t["qty"].endswith("0") for t in trades)


def test_a_second_subscription_and_a_missing_one_are_told() -> None:
    with Sim("kraken", "--rate", "0") as sim, connect(sim, "/v2") as client:
        ask(client, subscribe(["BTC/USD"]))
        assert until(client, "method")["success"] is True
        ask(client, subscribe(["BTC/USD"]))
        assert until(client, "method")["error"] == "Already subscribed"
        ask(client, {**subscribe(["BTC/USD"]), "method": "unsubscribe"})
        assert until(client, "method")["success"] is True
        ask(client, {**subscribe(["BTC/USD"]), "method": "unsubscribe"})
        assert until(client, "method")["error"] == "Subscription Not Found"
        ask(client, {"method": "nonsense", "req_id": 3})
        assert until(client, "method")["error"] == "Unsupported event"
        ask(client, {"method": "ping", "req_id": 4})
        assert until(client, "method")["method"] == "pong"


@pytest.mark.parametrize("name", ["binance", "kraken"])
def test_what_is_unsubscribed_is_not_sent_behind_the_answer_and_the_rest_goes_on(
    name: str,
) -> None:
    if name == "binance":
        path, gone, stays = "/stream", "BTCUSDT", "ETHUSDT"
        params: Any = [f"{gone.lower()}@trade", f"{stays.lower()}@trade"]
        messages = [
            {"method": "SUBSCRIBE", "params": params, "id": 1},
            {"method": "UNSUBSCRIBE", "params": params[:1], "id": 2},
        ]
    else:
        path, gone, stays = "/v2", "BTC/USD", "ETH/USD"
        messages = [
            subscribe([gone, stays]),
            {**subscribe([gone], 2), "method": "unsubscribe"},
        ]

    def is_answer(found: Any) -> bool:
        return 2 in (found.get("id"), found.get("req_id"))

    with Sim(name, "--rate", "1000", "--symbols", f"{gone},{stays}") as sim:
        with connect(sim, path) as client, connect(sim, path) as other:
            for each in (client, other):
                ask(each, messages[0])
            sim.wait(lambda s: s["subscriptions"] == {gone: 2, stays: 2})
            before = ""
            while gone not in before:
                before += client.recv()
            ask(client, messages[1])
            sim.wait(lambda s: s["subscriptions"] == {gone: 1, stays: 2})
            while not is_answer(json.loads(text := client.recv())):
                before += text
            behind = "".join(client.recv() for _ in range(50))
            assert gone not in behind
            assert stays in behind
        # Who said goodbye is nobody that trades are sent to.
        sim.wait(lambda s: s["subscriptions"] == {})


def test_a_burst_of_subscriptions_exceeds_the_message_rate() -> None:
    with Sim("kraken", "--rate", "0") as sim, connect(sim, "/v2") as client:
        for n in range(30):
            ask(client, subscribe(["BTC/USD"], n))
        errors = [until(client, "method").get("error") for _ in range(30)]
        assert "Exceeded msg rate" in errors


def test_heartbeats_flow_when_nothing_else_does() -> None:
    with Sim("kraken", "--rate", "0") as sim, connect(sim, "/v2") as client:
        ask(client, subscribe(["BTC/USD"]))
        assert until(client, "method")["success"] is True
        assert message(client) == {"channel": "heartbeat"}


def test_the_instrument_channel_names_base_and_quote() -> None:
    with Sim("kraken", "--rate", "0") as sim, connect(sim, "/v2") as client:
        ask(client, {"method": "subscribe", "params": {"channel": "instrument"}, "req_id": 1})
        assert until(client, "method")["result"]["channel"] == "instrument"
        pairs = message(client)["data"]["pairs"]
        assert pairs[0] == {"symbol": "BTC/USD", "base": "BTC", "quote": "USD", "status": "online"}


def test_history_by_time_pages_through_all_trades_whatever_times_they_share() -> None:
    """``last`` is inclusive: a page begins with what the one before it ended with."""
    with Sim("kraken", "--no-limits", "--limit", "3000", "--symbols", "BTC/USD") as sim:
        sim.fault("rate", 100_000)
        sim.wait(lambda state: bool(state["finished"]))
        seen: dict[int, list[Any]] = {}
        since = "0"
        with httpx.Client(base_url=sim.rest_url) as rest:
            while len(seen) < 3000:
                query = {"pair": "XBTUSD", "since": since, "count": "1000"}
                text = rest.get("/0/public/Trades", params=query).text
                result = json.loads(text, parse_float=str)["result"]
                known = len(seen)
                seen.update({row[6]: row for row in result["XXBTZUSD"]})
                assert len(seen) > known, "a page without anything new: it would never end"
                since = result["last"]
        assert sorted(seen) == list(range(1_000_001, 1_003_001))
        for trade_id, row in seen.items():
            figures = sim.figures("BTC/USD", trade_id)
            assert (row[0], row[1]) == (figures.price, figures.quantity)
            assert row[3] == ("b" if figures.side == BUY else "s")


def test_asset_pairs_have_the_old_names() -> None:
    with Sim("kraken", "--no-limits", "--symbols", "BTC/USD,DOGE/USD,SOL/USD") as sim:
        pairs = httpx.get(f"{sim.rest_url}/0/public/AssetPairs").json()["result"]
        bitcoin = pairs["XXBTZUSD"]
        assert (bitcoin["altname"], bitcoin["wsname"]) == ("XBTUSD", "XBT/USD")
        assert (bitcoin["base"], bitcoin["quote"]) == ("XXBT", "ZUSD")
        assert pairs["XDGUSD"]["wsname"] == "XDG/USD"
        assert pairs["SOLUSD"]["wsname"] == "SOL/USD"
        wrong = httpx.get(f"{sim.rest_url}/0/public/AssetPairs", params={"pair": "NOSUCH"})
        assert wrong.json() == {"error": ["EQuery:Unknown asset pair"]}
        assert httpx.get(f"{sim.rest_url}/0/public/Time").json()["result"]["unixtime"] > 0
        status = httpx.get(f"{sim.rest_url}/0/public/SystemStatus").json()
        assert status["result"]["status"] == "online"


def test_more_than_a_request_a_second_is_too_many() -> None:
    with Sim("kraken") as sim, httpx.Client(base_url=sim.rest_url) as rest:
        answers = [rest.get("/0/public/Time").json()["error"] for _ in range(5)]
        assert answers[0] == []
        assert ["EGeneral:Too many requests"] in answers
        wait_until(lambda: rest.get("/0/public/Time").json()["error"], lambda e: e == [])


# --- Both.


def test_the_recording_is_replayed_with_its_ids_and_figures() -> None:
    if not RECORDING.exists():
        pytest.skip(f"the recorded frames are not there: {RECORDING}")
    with gzip.open(RECORDING, "rt") as lines:
        recorded = [json.loads(next(lines))["data"] for _ in range(6000)]
    options = ("--symbols", "BTCUSDT", "--trades", "recorded", "--rate", "max", "--hold")
    with (
        Sim("binance", *options, "--limit", "6010") as sim,
        connect(sim, "/ws/btcusdt@trade") as client,
    ):
        trades = [message(client) for _ in range(6010)]
    assert [t["t"] for t in trades] == list(range(recorded[0]["t"], recorded[0]["t"] + 6010))
    figures = [(t["p"], t["q"], t["m"]) for t in trades]
    assert figures[:6000] == [(t["p"], t["q"], t["m"]) for t in recorded]
    assert figures[6000:] == figures[:10]


def test_the_recording_goes_at_its_own_pace_times_the_speed() -> None:
    """1,000 times faster, a symbol with 30 trades/s has far more than the others' 1/s."""
    options = ("--trades", "recorded", "--pace", "recorded", "--speed", "1000", "--rate", "1")
    with Sim("binance", *options, "--symbols", "BTCUSDT,ETHUSDT") as sim:
        state = sim.wait(lambda s: bool(s["symbols"]["BTCUSDT"]["made"] >= 12_500))
        assert state["symbols"]["ETHUSDT"]["made"] < 100


@pytest.mark.parametrize("exchange", ["binance", "kraken"])
def test_what_was_rendered_beforehand_is_what_is_rendered_as_it_goes(exchange: str) -> None:
    symbol, path = {"binance": ("BTCUSDT", "/ws/btcusdt@trade"), "kraken": ("BTC/USD", "/v2")}[
        exchange
    ]
    streams = []
    for prerender in ("0", "700"):
        options = ("--symbols", symbol, "--prerender", prerender, "--limit", "1500", "--hold")
        with Sim(exchange, "--rate", "20000", *options) as sim, connect(sim, path) as client:
            if exchange == "kraken":
                ask(client, subscribe([symbol]))
            trades: list[tuple[Any, ...]] = []
            while len(trades) < 1500:
                found = message(client)
                for t in found.get("data", [found]):
                    if "t" in t:
                        trades.append((t["t"], t["p"], t["q"], t["m"]))
                        assert t["E"] == t["T"] > 1_700_000_000_000
                    elif "trade_id" in t:
                        trades.append((t["trade_id"], t["price"], t["qty"], t["side"]))
                        assert t["timestamp"].startswith("2")
        streams.append(trades)
    assert streams[0] == streams[1]


def test_at_saturation_a_slow_reader_is_waited_for_and_misses_nothing() -> None:
    options = ("--symbols", "BTCUSDT", "--rate", "max", "--limit", "100000", "--hold")
    with Sim("binance", *options) as sim, connect(sim, "/ws/btcusdt@trade") as client:
        # Nobody reads: it makes what fits into the buffers, and then no more.
        made = -1
        while made != (now := sim.state()["symbols"]["BTCUSDT"]["made"]):
            made = now
            time.sleep(0.2)
        assert made < 100_000
        data = bytearray()
        while data.count(b'"M":true}') < 100_000:
            data += client.sock.recv(1 << 20)
        ids = [int(found) for found in re.findall(rb'"t":(\d+)', data)]
        assert ids == list(range(1_000_001, 1_100_001))


def test_the_rate_is_kept() -> None:
    options = ("--rate", "1000", "--limit", "2000", "--symbols", "BTCUSDT,ETHUSDT", "--hold")
    with Sim("binance", *options) as sim:
        with connect(sim, "/stream?streams=btcusdt@trade/ethusdt@trade") as client:
            times = [message(client)["data"]["T"] for _ in range(2000)]
        passed_s = (times[-1] - times[0]) / 1000
        assert passed_s >= 1.8


def test_nothing_is_made_until_every_symbol_is_held_by_someone() -> None:
    options = ("--hold", "--rate", "1000", "--symbols", "BTCUSDT,ETHUSDT")
    with Sim("binance", *options) as sim, connect(sim, "/ws/btcusdt@trade"):
        state = sim.wait(lambda s: s["subscriptions"] == {"BTCUSDT": 1})
        assert state["held"]
        assert state["symbols"]["BTCUSDT"]["made"] == 0
        with connect(sim, "/ws/ethusdt@trade") as client:
            assert message(client)["t"] == 1_000_001
            assert not sim.state()["held"]


def test_a_message_can_be_sent_to_all_clients() -> None:
    with Sim("binance", "--rate", "0") as sim, connect(sim, "/ws") as client:
        sim.send('{"odd":"é"}')
        assert message(client) == {"odd": "é"}
        sim.send_bytes(b"\x00\xff", opcode=2)
        assert client.recv() == b"\x00\xff"
        with pytest.raises(ValueError, match="opcode from 0 to 15"):
            sim.send_bytes(b"", opcode=16)


@pytest.mark.parametrize("exchange", ["binance", "kraken"])
def test_no_message_of_a_client_ends_the_connection_by_surprise(exchange: str) -> None:
    path = {"binance": "/ws", "kraken": "/v2"}[exchange]
    odd = ['{"id":"\\ud800","req_id":"\\ud800","method":"LIST_SUBSCRIPTIONS"}', "[" * 60_000]
    odd += ["null", '{"method":[],"id":[]}', '{"method":"SUBSCRIBE","params":[[1]]}']
    odd += ['{"method":"subscribe","params":{"channel":[],"symbol":{}}}', "", "\x00"]
    odd += ['{"method":"subscribe","params":{"channel":"trade","symbol":[null,[]]}}']
    with Sim(exchange, "--no-limits", "--rate", "0") as sim, connect(sim, path) as client:
        for text in odd:
            client.send(text)
            assert message(client)
        assert sim.state()["connections_open"] == 1


def test_a_message_above_64_kib_closes_the_connection() -> None:
    with Sim("binance") as sim, connect(sim, "/ws") as client:
        client.send("x" * 65_537)
        assert client.recv_data()[1][:2] == (1009).to_bytes(2, "big")
