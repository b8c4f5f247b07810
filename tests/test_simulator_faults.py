"""The simulator's faults: each does what its name says, and nothing else."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st
from sim import Sim, wait_until

from feedmono.simulator.binance import Binance
from feedmono.simulator.faults import Faults, parse, setting
from feedmono.simulator.market import MadeSource
from feedmono.simulator.tape import LOST, REORDERED, REPEATED, SENT, Tape
from feedmono.trade import is_decimal

FIRST = 1_000_001
STREAM = "/ws/btcusdt@trade"
ONE = ("--symbols", "BTCUSDT", "--hold")


@contextmanager
def connect(sim: Sim, path: str = STREAM) -> Iterator[Any]:
    with closing(websocket.create_connection(sim.ws_url + path, timeout=10)) as client:
        yield client


def is_gone(client: Any) -> bool:
    """Whether the connection ends within the client's timeout, whatever comes before."""
    try:
        while client.sock.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def journal_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def ids_until(client: Any, count: int) -> list[int]:
    """The ids of the next *count* trades that can be read, other messages passed over."""
    ids: list[int] = []
    while len(ids) < count:
        opcode, payload = client.recv_data()
        try:
            trade = json.loads(payload) if opcode == websocket.ABNF.OPCODE_TEXT else None
        except (ValueError, RecursionError):
            continue
        if isinstance(trade, dict) and is_whole(trade):
            ids.append(trade["t"])
    return ids


def is_whole(trade: dict[str, Any]) -> bool:
    decimals = all(isinstance(trade.get(k), str) and is_decimal(trade[k]) for k in "pq")
    return decimals and all(type(trade.get(k)) is int and trade[k] < 2**63 for k in "tT")


# --- Trades.


def test_the_journal_tells_what_every_client_received(tmp_path: Path) -> None:
    """Lost trades are missing, repeated ones come twice, reordered ones late, all others once."""
    path = tmp_path / "journal.csv"
    faults = "lose=0.05,repeat=0.05,reorder=0.05"
    options = ("--rate", "5000", "--limit", "2000", "--journal", str(path), "--faults", faults)
    with Sim("binance", *ONE, *options) as sim, connect(sim) as client:
        state = sim.wait(lambda s: bool(s["finished"]))["symbols"]["BTCUSDT"]
        ids = ids_until(client, 2000 - state["lost"] + state["repeated"])
        rest = httpx.get(
            f"{sim.rest_url}/api/v3/historicalTrades",
            params={"symbol": "BTCUSDT", "fromId": "0", "limit": "1000"},
        ).json()
    rows = journal_of(path)
    assert [int(r["id"]) for r in rows] == list(range(FIRST, FIRST + 2000))
    fates = Counter(r["fate"] for r in rows)
    for fate in (LOST, REPEATED, REORDERED):
        assert 50 <= fates[fate] == state[fate] <= 200
    received = Counter(ids)
    copies = {SENT: 1, LOST: 0, REPEATED: 2, REORDERED: 1}
    for row in rows:
        assert received[int(row["id"])] == copies[row["fate"]]
        figures = sim.figures("BTCUSDT", int(row["id"]))
        assert (row["price"], row["quantity"]) == (figures.price, figures.quantity)
        assert row["side"] == ("BUY", "SELL")[figures.side]
    late = {i for n, i in enumerate(ids) if i < max(ids[: n + 1])}
    delayed = {int(r["id"]) for r in rows if r["fate"] in (REPEATED, REORDERED)}
    # Where all the trades that it was to let pass were delayed as well, it is not late.
    assert late <= delayed
    assert len(late) > 0.8 * len(delayed)
    assert [r["id"] for r in rest] == list(range(FIRST, FIRST + 1000))
    times_ms = {int(r["id"]): int(r["time_us"]) // 1000 for r in rows}
    assert all(times_ms[r["id"]] == r["time"] for r in rest)


def test_the_same_seed_does_the_same_to_the_same_trades(tmp_path: Path) -> None:
    journals: list[list[dict[str, str]]] = []
    for seed, rate in (("5", "3000"), ("5", "max"), ("6", "max")):
        path = tmp_path / f"{len(journals)}.csv"
        faults = "lose=0.1,repeat=0.1,reorder=0.1"
        options = ("--seed", seed, "--rate", rate, "--limit", "1000", "--faults", faults)
        with Sim("binance", *ONE, *options, "--journal", str(path)) as sim, connect(sim):
            sim.wait(lambda s: bool(s["finished"]))
        rows = journal_of(path)
        journals.append([{k: v for k, v in r.items() if k != "time_us"} for r in rows])
    assert journals[0] == journals[1]
    assert journals[0] != journals[2]


def test_a_trade_that_nobody_was_subscribed_to_is_unheard() -> None:
    with Sim("binance", "--limit", "50", "--rate", "1000") as sim:
        state = sim.wait(lambda s: bool(s["finished"]))
        assert state["symbols"]["BTCUSDT"]["unheard"] == 10
        assert state["symbols"]["BTCUSDT"]["sent"] == 0


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
)
def test_faults_on_trades_do_not_depend_on_how_the_trades_are_spread_over_time(
    runs: list[int], seed: int, lose: float, repeat: float, reorder: float
) -> None:
    """Whatever the runs: the same sequence, each trade as often as its fate says, none more
    than five places late."""
    total = sum(runs)

    def play(sizes: list[int]) -> tuple[list[int], list[str]]:
        faults = Faults(seed, lose=lose, repeat=repeat, reorder=reorder)
        market = Binance.markets["BTCUSDT"]
        tape = Tape(market, MadeSource(1, market), FIRST, total, 1)
        sent: list[int] = []
        fates: list[str] = []
        for size in sizes:
            arranged = tape.arrange(tape.make(size, 1_700_000_000_000_000), faults)
            sent += arranged.ids
            fates += arranged.fates
        return sent, fates

    sent, fates = play(runs)
    assert (sent, fates) == play([1] * total)
    copies = Counter(sent)
    expected = {SENT: 1, LOST: 0, REPEATED: 2, REORDERED: 1}
    assert [copies[FIRST + n] for n in range(total)] == [expected[f] for f in fates]
    highest = 0
    for trade_id in sent:
        highest = max(highest, trade_id)
        assert highest - trade_id <= 5


def test_garbage_stands_between_whole_trades() -> None:
    options = ("--rate", "2000", "--limit", "600", "--faults", "garbage=0.3")
    with Sim("binance", *ONE, *options) as sim, connect(sim) as client:
        # The client library would refuse invalid UTF-8 in a text frame itself.
        client.frame_buffer.skip_utf8_validation = True
        client.cont_frame.skip_utf8_validation = True
        assert ids_until(client, 600) == list(range(FIRST, FIRST + 600))
        assert 120 <= sim.state()["faults"]["garbage"] <= 240


def test_garbage_of_kraken_never_holds_a_trade_that_could_be_read() -> None:
    """Nor one with a wrong figure: every trade that is whole is as it was made."""
    options = ("--rate", "2000", "--limit", "900", "--hold", "--faults", "garbage=0.5")
    with Sim("kraken", "--symbols", "BTC/USD", *options) as sim, connect(sim, "/v2") as client:
        client.frame_buffer.skip_utf8_validation = True
        client.cont_frame.skip_utf8_validation = True
        params = {"channel": "trade", "symbol": ["BTC/USD"], "snapshot": False}
        client.send(json.dumps({"method": "subscribe", "params": params, "req_id": 1}))
        ids: list[int] = []
        while len(ids) < 900:
            opcode, payload = client.recv_data()
            try:
                found = json.loads(payload, parse_float=lambda text: ("number", text))
                trades = found["data"] if opcode == 1 and found["channel"] == "trade" else []
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            for trade in trades:
                price = trade.get("price")
                if not isinstance(price, tuple):
                    continue
                figures = sim.figures("BTC/USD", trade["trade_id"])
                assert price == ("number", figures.price)
                ids.append(trade["trade_id"])
        assert ids == list(range(FIRST, FIRST + 900))


def test_an_oversized_frame_has_its_size() -> None:
    options = ("--rate", "50", "--faults", "oversized=1,oversized-mib=2")
    with Sim("binance", *ONE, *options) as sim, connect(sim) as client:
        assert len(client.recv()) == 2 * 2**20 + 2
        assert json.loads(client.recv())["t"] == FIRST


def test_fragments_with_a_ping_between_make_the_same_trades() -> None:
    options = ("--rate", "1000", "--limit", "100", "--faults", "fragmented=1")
    with Sim("binance", *ONE, *options) as sim, connect(sim) as client:
        frames = [client.recv_frame() for _ in range(4)]
        assert [(f.opcode, f.fin) for f in frames] == [(1, 0), (0, 0), (9, 1), (0, 1)]
        text = b"".join(f.data for f in frames if f.opcode != 9)
        assert json.loads(text)["t"] == FIRST
        assert ids_until(client, 99) == list(range(FIRST + 1, FIRST + 100))


def test_a_pause_stops_the_trades_and_not_the_connection() -> None:
    with Sim("binance", "--rate", "500", *ONE) as sim, connect(sim) as client:
        last = ids_until(client, 1)[0]
        sim.fault("pause")
        made = sim.state()["symbols"]["BTCUSDT"]["last_id"]
        assert ids_until(client, made - last)[-1] == made
        client.settimeout(0.3)
        with pytest.raises(websocket.WebSocketTimeoutException):
            client.recv()
        sim.fault("pause", False)
        client.settimeout(10)
        assert ids_until(client, 1) == [made + 1]


def test_a_skewed_clock_shows_in_trades_and_in_rest() -> None:
    with Sim("binance", *ONE, "--faults", "skew=-1h") as sim, connect(sim) as client:
        now_ms = time.time_ns() // 1_000_000
        assert abs(json.loads(client.recv())["T"] - now_ms + 3_600_000) < 60_000
        server_ms = httpx.get(f"{sim.rest_url}/api/v3/time").json()["serverTime"]
        assert abs(server_ms - now_ms + 3_600_000) < 60_000


# --- Connections.


def test_a_cut_ends_every_connection_at_once() -> None:
    with Sim("binance") as sim, connect(sim) as one, connect(sim) as two:
        sim.fault("cut")
        assert is_gone(one)
        assert is_gone(two)
        assert sim.state()["faults"]["cut"] == 2


def test_cuts_by_themselves_come_again_and_again() -> None:
    with Sim("binance", "--faults", "cut=100ms", "--no-limits") as sim:
        for _ in range(3):
            with connect(sim) as client:
                assert is_gone(client)


def test_a_half_open_connection_gives_nothing_and_answers_nothing() -> None:
    with Sim("binance", "--rate", "1000") as sim, connect(sim) as client:
        client.recv()
        sim.fault("half-open")
        client.settimeout(0.3)
        with pytest.raises(websocket.WebSocketTimeoutException):
            ids_until(client, 1_000_000)
        client.ping("x")
        with pytest.raises(websocket.WebSocketTimeoutException):
            client.recv_data(control_frame=True)
        assert sim.state()["connections_silent"] == 1
        with connect(sim) as other:
            assert ids_until(other, 1)


def test_a_mute_connection_opens_and_acknowledges_nothing() -> None:
    with Sim("kraken", "--faults", "mute=1") as sim:
        with connect(sim, "/v2") as client:
            client.send('{"method":"ping","req_id":1}')
            client.settimeout(0.5)
            with pytest.raises(websocket.WebSocketTimeoutException):
                client.recv()
        sim.fault("mute", False)
        with connect(sim, "/v2") as client:
            assert json.loads(client.recv())["channel"] == "status"


def test_a_slow_connection_gets_so_many_bytes_a_second() -> None:
    options = ("--rate", "max", "--limit", "100000", "--faults", "slow=20000")
    with Sim("binance", *ONE, *options) as sim, connect(sim) as client:
        begin = time.monotonic()
        received = 0
        while received < 30_000:
            received += len(client.sock.recv(4096))
        assert time.monotonic() - begin >= 1.2
        sim.fault("slow", 0)
        while received < 3_000_000:
            received += len(client.sock.recv(1 << 20))


def test_a_client_that_does_not_read_is_cut_at_the_limit_of_the_buffer() -> None:
    with Sim("binance", *ONE, "--rate", "100000", "--send-buffer", "0.1") as sim, connect(sim):
        sim.wait(lambda s: s["connections_open"] == 0)
        assert sim.state()["faults"]["slow client cut"] == 1


def test_a_close_code_is_sent_to_all() -> None:
    with Sim("binance", "--rate", "0") as sim, connect(sim) as client:
        sim.fault("close", 4321)
        assert client.recv_data()[1][:2] == (4321).to_bytes(2, "big")


@pytest.mark.parametrize("exchange", ["binance", "kraken"])
def test_a_shutdown_is_announced_before_the_connection_is_closed(exchange: str) -> None:
    path = {"binance": "/stream", "kraken": "/v2"}[exchange]
    with Sim(exchange, "--rate", "0") as sim, connect(sim, path) as client:
        sim.fault("shutdown")
        notice = json.loads(client.recv())
        if exchange == "kraken":
            notice = json.loads(client.recv())
            assert notice["data"][0]["system"] == "maintenance"
        else:
            assert notice["stream"] == "!serverShutdown"
            assert notice["data"]["e"] == "serverShutdown"
        assert client.recv_data()[1][:2] == (1001).to_bytes(2, "big")


def test_refused_connections_are_closed_or_answered_with_the_status() -> None:
    with Sim("binance", "--rate", "0") as sim:
        sim.fault("refuse-connections")
        with pytest.raises((websocket.WebSocketException, OSError)):
            websocket.create_connection(sim.ws_url + STREAM, timeout=10)
        sim.fault("refuse-connections", 503)
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(sim.ws_url + STREAM, timeout=10)
        assert caught.value.status_code == 503
        sim.fault("refuse-connections", False)
        with connect(sim):
            assert sim.state()["connections_accepted"] == 1


def test_a_refused_symbol_is_told_by_its_name() -> None:
    with Sim("kraken", "--faults", "refuse=ETH/USD") as sim, connect(sim, "/v2") as client:
        params = {"channel": "trade", "symbol": ["ETH/USD"], "snapshot": True}
        client.recv()
        client.send(json.dumps({"method": "subscribe", "params": params, "req_id": 1}))
        assert json.loads(client.recv())["error"] == "Currency pair not supported ETH/USD"
    with Sim("binance", "--faults", "refuse=ETHUSDT") as sim, connect(sim, "/ws") as client:
        request = {"method": "SUBSCRIBE", "params": ["ethusdt@trade"], "id": 1}
        client.send(json.dumps(request))
        assert json.loads(client.recv())["code"] == 2


def test_a_trading_status_is_told_to_all_where_there_is_one() -> None:
    with Sim("kraken", "--rate", "0") as sim, connect(sim, "/v2") as client:
        client.recv()
        sim.fault("status", "cancel_only")
        assert json.loads(client.recv())["data"][0]["system"] == "cancel_only"
    with Sim("binance") as sim, pytest.raises(ValueError, match="has no status messages"):
        sim.fault("status", "maintenance")


# --- REST.


@pytest.mark.parametrize(("kind", "status"), [("rest-429", 429), ("rest-418", 418)])
def test_back_off_and_ban_hold_until_their_retry_after_is_over(kind: str, status: int) -> None:
    with Sim("binance", "--rate", "0") as sim, httpx.Client(base_url=sim.rest_url) as rest:
        sim.fault(kind, 1)
        first = rest.get("/api/v3/time")
        assert first.status_code == status
        assert int(first.headers["Retry-After"]) >= 1
        sim.fault(kind, 0)
        assert rest.get("/api/v3/time").status_code == status
        assert sim.state()["faults"]["retry-after ignored"] == 1
        wait_until(lambda: rest.get("/api/v3/time").status_code, lambda s: s == 200)


def test_server_errors_slow_answers_and_missing_ones() -> None:
    with Sim("binance", "--limit", "100", "--rate", "10000") as sim:
        sim.wait(lambda s: bool(s["finished"]))
        url = f"{sim.rest_url}/api/v3/historicalTrades"
        query = {"symbol": "BTCUSDT", "fromId": "0"}
        sim.fault("rest-5xx", 1)
        assert httpx.get(url, params=query).status_code >= 500
        sim.fault("rest-5xx", 0)
        sim.fault("rest-slow", "300ms")
        begin = time.monotonic()
        assert len(httpx.get(url, params=query).json()) == 20
        assert time.monotonic() - begin >= 0.3
        sim.fault("rest-slow", 0)
        sim.fault("rest-none", 1)
        empty = closed = 0
        for _ in range(40):
            try:
                assert httpx.get(url, params=query).json() == []
                empty += 1
            except httpx.RemoteProtocolError:
                closed += 1
        assert empty > 0
        assert closed > 0


def test_wrong_pages_are_of_another_symbol_other_ids_or_another_order() -> None:
    with Sim("binance", "--limit", "100", "--rate", "10000") as sim:
        sim.wait(lambda s: bool(s["finished"]))
        url = f"{sim.rest_url}/api/v3/historicalTrades"
        query = {"symbol": "BTCUSDT", "fromId": "0"}
        right = httpx.get(url, params=query).json()
        sim.fault("rest-wrong", 1)
        kinds = set()
        for _ in range(30):
            page = httpx.get(url, params=query).json()
            assert page != right
            if page == right[::-1]:
                kinds.add("order")
            elif page[0]["id"] > FIRST + 1000:
                kinds.add("ids")
            else:
                assert page[0]["price"] != right[0]["price"]
                kinds.add("symbol")
        assert kinds == {"order", "ids", "symbol"}


# --- The words for them.


def test_every_mistake_in_a_spec_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'lose'.*probability from 0 to 1") as caught:
        parse("loose=0.1,repeat=2,skew=soon,cut=5s")
    assert "a duration is wanted" in str(caught.value)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(max_size=20), st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=9)))
def test_a_fault_is_either_understood_or_refused_with_a_reason(kind: str, value: object) -> None:
    for name in (kind, "cut", "lose", "close", "skew", "slow", "mute", "oversized-mib", "pause"):
        try:
            Faults(1).set(setting(name, value))
        except ValueError as error:
            assert str(error)  # noqa: PT017
